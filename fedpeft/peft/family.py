"""The registry of PEFT methods, and methods joined by `+`."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.errors import ConfigError
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.parts.spec import Spec
from fedpeft.peft.adapter import AdapterShape
from fedpeft.peft.method import PeftMethod


def resize_method(text: str, method: PeftMethod, forms: Sequence[AdapterShape | None]) -> str:
    """Return the method's text with the size of the largest client, at the same scale.

    Args:
        text: the method as the user wrote it.
        method: the method that `text` stands for.
        forms: the clients' shapes; None: a client without one.

    Raises:
        ConfigError: clients hold another size than the method's own, and the method has one size for all clients.
    """
    largest = max((form for form in forms if form), key=lambda form: form.rank, default=None)
    if method.form is None or largest is None or largest.rank == method.form.rank:
        return text
    if not method.mixed_sizes:
        raise ConfigError(
            f"FP1238 {method.name} has one size for all clients, {method.form.rank}; remove --ranks and set the size "
            "in --peft"
        )
    spec = PEFT_METHODS.parse_text(text)
    settings = method.get_settings_for(AdapterShape(largest.rank, method.form.scale * largest.rank))
    return str(Spec(spec.name, {**spec.settings, **settings}, spec.argument))

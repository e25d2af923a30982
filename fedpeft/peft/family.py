"""All PEFT methods, and several joined by `+`."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.errors import ConfigError
from fedpeft.parts import Family
from fedpeft.peft.adapter import ClientForm
from fedpeft.peft.method import PeftMethod
from fedpeft.spec import Spec, parse_spec, split_outside_parentheses


class MethodFamily(Family[PeftMethod]):
    """PEFT methods by file name or its unique beginning, and several joined by `+`."""

    def build(self, text: str | Spec) -> PeftMethod:
        """The method that `text` describes.

        Raises:
            ConfigError: unknown method or setting, or methods that can't be joined.
        """
        if isinstance(text, str):
            words = split_outside_parentheses(text, "+")
            if len(words) > 1:
                from fedpeft.peft.hybrid import Hybrid

                return Hybrid(tuple(self.build(word) for word in words))
        spec = parse_spec(text) if isinstance(text, str) else text
        return super().build(Spec(self.whole_name(spec.name), spec.settings, spec.argument, spec.values))

    def taken(self, name: str) -> str:
        """The method that a method called `name` would hide: `prefix` hides prefix_tuning."""
        return next((own for own in self.own_names if own.startswith(name)), "")

    def whole_name(self, name: str) -> str:
        """The one name that begins with `name`, others that go on from it aside: `prefix` for prefix_tuning."""
        found = [n for n in self.names if n.startswith(name)]
        shortest = min(found, key=len, default=name)
        clear = all(n == shortest or n.startswith(shortest + "_") for n in found)
        return shortest if name not in self.names and clear else name


PEFT_METHODS = MethodFamily("fedpeft.peft.methods", "PEFT method", group="peft_methods", kind=PeftMethod)
"""All methods, by file name."""


def of_size(text: str, method: PeftMethod, forms: Sequence[ClientForm | None]) -> str:
    """The text of the method at the size of the largest client, its scale unchanged.

    Raises:
        ConfigError: clients hold another size than the method's own, and it has one for all.
    """
    largest = max((form for form in forms if form), key=lambda form: form.rank, default=None)
    if method.form is None or largest is None or largest.rank == method.form.rank:
        return text
    if not method.mixed_sizes:
        raise ConfigError(
            f"FP1238 {method.name} has one size for all clients, {method.form.rank}; leave ranks away, and set it in "
            "--peft"
        )
    spec = parse_spec(text)
    settings = method.sized(ClientForm(largest.rank, method.form.scale * largest.rank))
    return str(Spec(PEFT_METHODS.whole_name(spec.name), {**spec.settings, **settings}, spec.argument))

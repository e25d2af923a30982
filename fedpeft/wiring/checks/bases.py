"""What the base that clients hold does not allow."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.errors import ConfigError
from fedpeft.models.quantized_base import PRECISIONS, check_available
from fedpeft.peft.method import PeftMethod
from fedpeft.wiring.profiles import Profile, list_distinct


def check_bases(profiles: Sequence[Profile], dtype: str, method: PeftMethod) -> None:
    """Refuse a precision of the base that the method, this machine or the run can't have, or ConfigError says which."""
    bases = {profile.base for profile in list_distinct(profiles)}
    for precision in PRECISIONS:
        if precision in bases:
            check_available(precision)
            if not method.few_bits:
                raise ConfigError(
                    f"FP1298 {method.name} reads or trains the base's own weights, which a base in {precision} "
                    "does not have; leave base= out of the profiles, or use --peft lora"
                )
    if dtype == "fp64" and bases - {""}:
        raise ConfigError("FP1299 an fp64 run is for exact comparisons; leave base out of its profiles")

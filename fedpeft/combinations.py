"""Which parts of a run go together; what makes no sense is refused before anything is trained, with the reason."""

from __future__ import annotations

from fedpeft.errors import ConfigError
from fedpeft.strategy import GatherStrategy, Strategy


def check_combination(strategy: Strategy) -> None:
    """Refuse parts that don't go together.

    Raises:
        ConfigError: says which, and why.
    """
    if isinstance(strategy, GatherStrategy) and strategy.fills_base:
        raise ConfigError(f"{type(strategy).__name__} puts a residual into the base, which a run can't do yet")

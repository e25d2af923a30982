"""What does not go with rules whose clients train some ranks of the factors, and others in the next round."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedpeft.aggregation.abilities import RankSchedule
from fedpeft.aggregation.owned_ranks import get_held_form
from fedpeft.clients.local_optimizer import MovesIdleEntries
from fedpeft.errors import ConfigError
from fedpeft.parts import name_of
from fedpeft.wiring.profiles import list_distinct

if TYPE_CHECKING:
    from fedpeft.aggregation.strategy import Strategy
    from fedpeft.clients.local_optimizer import LocalOptimizer
    from fedpeft.peft.adapter import AdapterShape, Layout
    from fedpeft.wiring.setup import Setup


def check_ranks(setup: Setup) -> None:
    """Refuse what would lose its meaning with other ranks, or would move those that a client only holds.

    Raises:
        ConfigError: says what, and what to take instead.
    """
    strategy, uplink, forms = setup.strategy, setup.uplink, [profile.form for profile in list_distinct(setup.profiles)]
    if uplink.has_memory and isinstance(strategy, RankSchedule):
        raise ConfigError(
            f"FP1329 {type(strategy).__name__} changes clients' ranks each round, and error feedback belongs to "
            f"the previous ranks; use --codec {str(uplink.remove_memory())!r}"
        )
    if isinstance(strategy, RankSchedule) and not setup.downlink.lossless:
        raise ConfigError(
            f"FP1330 {type(strategy).__name__} changes clients' ranks each round, and a lossy downlink sends the "
            "changes of fixed ranks; use --downlink fp32"
        )
    check_decay(setup.training.optimizer, strategy, setup.layout, forms)


def check_decay(
    optimizer: LocalOptimizer, strategy: Strategy, layout: Layout, forms: Iterable[AdapterShape | None]
) -> None:
    """Refuse weight decay where a client of one of these forms holds ranks that it does not train.

    Raises:
        ConfigError: says where to leave it out.
    """
    if not (isinstance(optimizer, MovesIdleEntries) and optimizer.moves_idle_entries()):
        return
    held = ((get_held_form(strategy, layout, form), form) for form in forms)
    if any(whole and form and whole.rank > form.rank for whole, form in held):
        raise ConfigError(
            f"FP1331 weight_decay would shrink ranks that {name_of(type(strategy))} leaves untrained on clients; "
            "leave it out of --optimizer"
        )

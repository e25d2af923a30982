"""Which parts of a run go together; what makes no sense is refused before anything is trained, with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.clients.training import LocalTraining
from fedpeft.codec import BIASED
from fedpeft.errors import ConfigError
from fedpeft.profiles import Profile
from fedpeft.server_optimizer import SERVER_OPTIMIZERS, ServerOptimizer
from fedpeft.strategy import LinearStrategy, RoundStrategy, Strategy
from fedpeft.uplink import Uplink, parse_uplink


def check_combination(
    strategy: Strategy,
    optimizer: ServerOptimizer,
    profiles: Sequence[Profile],
    training: LocalTraining,
    scaffold: bool,
) -> None:
    """Refuse parts that don't go together.

    Raises:
        ConfigError: says which, and why.
    """
    name = type(strategy).__name__
    plain = optimizer == SERVER_OPTIMIZERS.build("sgd")
    if isinstance(strategy, RoundStrategy) and not plain:
        raise ConfigError(
            f"{name} computes the next factors itself, so there is no mean update that a server optimizer could step "
            "along; leave --server-optimizer at sgd with learning rate 1, or take a linear strategy such as fedit"
        )
    turns = isinstance(strategy, LinearStrategy) and strategy.new_factors
    if turns and optimizer != SERVER_OPTIMIZERS.build("sgd") and type(optimizer).__name__ != "SGD":
        raise ConfigError(
            f"{name} turns the factors after each round, and the moments of a server optimizer would belong to the "
            "factors before; use --server-optimizer sgd"
        )
    if scaffold:
        _check_scaffold(strategy, turns, profiles, training)


def uplink_for(strategy: Strategy, text: str) -> tuple[Uplink, str]:
    """What `--codec` says, and a remark for the user where a preset has to do without its memory.

    Raises:
        ConfigError: see `parse_uplink`; or a memory is asked for that would lose its meaning from round to round.
    """
    uplink = parse_uplink(text)
    if not (uplink.remembers and strategy.new_factors):
        return uplink, ""
    name = type(strategy).__name__
    if text.strip() in BIASED:
        return (
            uplink.without_memory(),
            f"{text.strip()} runs without error feedback: {name} makes new factors each round",
        )
    raise ConfigError(
        f"{name} makes new factors each round, in which a memory of dropped parts of the old ones has no meaning; "
        f"use --codec {str(uplink.without_memory())!r}"
    )


def _check_scaffold(strategy: Strategy, turns: bool, profiles: Sequence[Profile], training: LocalTraining) -> None:
    name = type(strategy).__name__
    if isinstance(strategy, RoundStrategy) or turns:
        raise ConfigError(
            f"scaffold's control variates are gradients of parameters that mean the same in every round, but {name} "
            "makes new factors; use fedit, ffa_lora, rolora, fedsa_lora, flasc or fed_sb"
        )
    if training.optimizer != "sgd" or training.max_norm:
        raise ConfigError(
            "scaffold reads gradients off the clients' plain SGD steps; use --optimizer sgd without max_norm"
        )
    if len({profile.form for profile in profiles}) > 1:
        raise ConfigError("scaffold needs the same rank and alpha at all clients, whose gradients it averages")

"""What a PEFT method, an aggregation rule, a server optimizer and a correction of drift can be combined with."""

from __future__ import annotations

from collections.abc import Sequence

from fedpeft.aggregation.abilities import CountsClients, FreezesTensors
from fedpeft.aggregation.head_start import HeadStart
from fedpeft.aggregation.server_optimizer import Pace, ServerOptimizer
from fedpeft.aggregation.strategy import LinearStrategy, RoundStrategy, Strategy, list_preserving_strategies
from fedpeft.clients.drift import Correction, ExchangedCorrection
from fedpeft.communication.uplink import Uplink
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.models.task import Task
from fedpeft.parts import name_of
from fedpeft.peft.adapter import AdapterShape, Layout
from fedpeft.peft.method import PeftMethod
from fedpeft.privacy.mechanism import Mechanism


def check_method(method: PeftMethod, strategy: Strategy, forms: Sequence[AdapterShape | None]) -> None:
    """Refuse strategies and sizes that are not right for the PEFT method.

    Raises:
        ConfigError: which, and what to take instead.
    """
    strategy_name, meaning = name_of(type(strategy)), method.joint_meaning
    if meaning and meaning not in strategy.preserves:
        raise ConfigError(
            f"FP1332 {strategy_name} does not preserve the joint meaning of the parameters of {method.name} "
            f"({meaning}); use --strategy {' or '.join(list_preserving_strategies(meaning))}"
        )
    if strategy.fills_base and not method.residual:
        raise ConfigError(
            f"FP1333 {strategy_name} puts what the factors can't hold into the base, which {method.name} does "
            "not allow; use flexlora"
        )
    if not method.mixed_sizes and len({*forms, method.form}) > 1:
        raise ConfigError(f"FP1334 {method.name} has one size for all clients; leave ranks and alphas out")


def check_server(strategy: Strategy, optimizer: ServerOptimizer) -> None:
    """Refuse a server optimizer where the rule leaves it nothing to step along.

    Raises:
        ConfigError: says why, and what to take instead.
    """
    name = type(strategy).__name__
    plain = not optimizer.keeps_state and optimizer.pace == Pace()
    if isinstance(strategy, RoundStrategy) and not plain:
        raise ConfigError(
            f"FP1335 {name} computes the next factors itself, so there is no mean update that a server "
            "optimizer could step along; leave --server-optimizer at sgd with learning rate 1, or use a linear "
            "strategy such as fedit"
        )
    if isinstance(strategy, CountsClients) and not plain:
        raise ConfigError(
            f"FP1336 {name} keeps the mean over all clients, and a server optimizer would lead away from it; leave "
            "--server-optimizer at sgd with learning rate 1"
        )
    if _has_new_factors(strategy) and optimizer.keeps_state:
        raise ConfigError(
            f"FP1337 {name} turns the factors after each round, and the moments of a server optimizer would belong to "
            "the factors before; use --server-optimizer sgd"
        )


def _has_new_factors(strategy: Strategy) -> bool:
    """Return whether a linear rule makes new factors after its step."""
    return isinstance(strategy, LinearStrategy) and strategy.new_factors


def check_memory(strategy: Strategy, uplink: Uplink) -> None:
    """Refuse a memory that would lose its meaning from round to round, or ConfigError says what to take instead."""
    if uplink.has_memory and strategy.new_factors:
        raise ConfigError(
            f"FP1338 {type(strategy).__name__} makes new factors each round, and error feedback belongs to the "
            f"old ones; use --codec {str(uplink.remove_memory())!r}"
        )


def check_needs(correction: Correction, strategy: Strategy, layout: Layout) -> None:
    """Refuse a correction with nothing to act on, or ConfigError says what it looks for."""
    trained = strategy.list_trained(layout, 1)
    for ending in correction.needs:
        if not any(name.endswith(ending) for name in trained):
            raise ConfigError(
                f"FP1339 {correction.name} acts on tensors called ...{ending}, and clients train none in every "
                "round; leave it out, or use --peft lora with a strategy that trains both factors, such as "
                "fedit"
            )
    frozen = strategy.list_frozen(layout) if isinstance(strategy, FreezesTensors) else frozenset()
    if isinstance(correction, ExchangedCorrection) and not trained - strategy.list_private(layout) - frozen:
        raise ConfigError(
            f"FP1340 {correction.name} corrects tensors that clients train and share, and with "
            f"{name_of(type(strategy))} there are none; leave it out"
        )


def check_label_shift(task: Task, name: str, head: HeadStart, mechanism: Mechanism | None) -> None:
    """Refuse the correction of label shift where shares of classes are not known, or would not be protected.

    Raises:
        ConfigError: there are no classes, or nobody learns how many rows each has.
        PrivacyError: a row would change the loss of a client's other rows.
    """
    if task.targets != "classes":
        has = {"numbers": "numbers have", "labels": "examples with several labels have"}
        what = has.get(task.targets, f"examples of {name_of(type(task))} have")
        raise ConfigError(f"FP1341 label_shift corrects for the shares of classes, but {what} none; leave it out")
    if mechanism is not None and mechanism.per_example:
        raise PrivacyError(
            "FP7111 label_shift makes the loss of each example depend on the labels of a client's other "
            f"examples, which {mechanism.name} does not cover; leave it out"
        )
    if not head.exchanges or head.bounded:
        raise ConfigError(
            f"FP1342 label_shift needs the shares of classes among all examples, and head={name} does not ask "
            "clients for them; use --head ridge, discriminant or centroids, or leave it out"
        )

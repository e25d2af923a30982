"""What `auto` stands for: PEFT method, start of the head, drift correction, partition and precision that suit a run.

What depends on rows that have not been looked at stays `auto`. A run's folder keeps what was chosen: on another
machine, continued or compared, the run stays what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedpeft.aggregation.abilities import CountsClients, is_personal
from fedpeft.aggregation.head_start import HeadStart
from fedpeft.aggregation.strategy import Strategy
from fedpeft.aggregation.task_rules import TaskStrategy
from fedpeft.config import RunConfig
from fedpeft.data.partition import USUAL
from fedpeft.data.rows import get_default_head, get_default_partition
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.errors import ConfigError
from fedpeft.machine.hardware import has_fast_bf16, list_accelerators
from fedpeft.models.task import Targets
from fedpeft.parts import format_part
from fedpeft.peft.adapter import Layout
from fedpeft.privacy.abilities import can_plan_whitening
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.spec import parse_spec
from fedpeft.wiring.catalogue import build_part
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.profiles import ProfileTable

ADAPTER = "lora"
"""The PEFT method where nothing else suits better."""

OF_IMAGES = "head2toe"
"""And where images have classes: better than an adapter on both sets of them, and ten times as fast
(`experiments/harm`, `experiments/ladder`)."""


def choose_method(config: RunConfig, facts: DatasetInfo, groups: Sequence[ProfileTable]) -> str:
    """The PEFT method of a configuration that says `auto`.

    Whatever is said of adapters, of how their updates are put together, protected or attacked, or of how a head on the
    last block starts, is said of lora.

    Args:
        config: the settings, as the user has given them.
        facts: of the data.
        groups: of clients that differ.
    """
    classes_of_images = facts.kind == "image" and facts.task == "classification" and facts.tasks is None
    plain = parse_spec(config.strategy).name == "fedit" and not (config.privacy or config.attack)
    alike = not config.ranks and not any(table.rank or table.alpha for table in groups)
    no_factors = not any(correction.needs for correction in build_part(config, "drift").corrections)
    return OF_IMAGES if classes_of_images and plain and alike and no_factors and config.head == "auto" else ADAPTER


FAR_APART = 0.55
"""Label skew from which on losses are corrected for it: between those of `experiments/harm`, where it has helped from
0.58 on, and where it was not asked for up to 0.49."""


def choose_drift(rule: Strategy, head: HeadStart, facts: DatasetInfo, layout: Layout) -> str:
    """What is done against clients' drift in a configuration that says `auto`, and protects nobody.

    Where clients hold different classes, each pulls towards its own, and the loss is corrected for that. Clients with
    models of their own are better off with what is likely among their own rows.
    """
    known = head.exchanges and not head.bounded and "head.weight" in layout.shapes
    if facts.task == "classification" and facts.tasks is None and known and not is_personal(rule, layout):
        return f"label_shift(least={FAR_APART})"
    return ""


def settle_config(config: RunConfig, targets: Targets = "classes") -> RunConfig:
    """The configuration with what `auto` is: precision on this machine, head under its privacy, partition of its data.

    Args:
        config: the settings; where the PEFT method is still `auto`, so is the head that suits it.
        targets: what the rows' labels are; of a data set that has not been looked at, classes.
    """
    if config.head == "auto" and config.peft != "auto":
        config = replace(config, head=_choose_head(config, targets))
    config = replace(config, partition=partition_of(config, targets))
    if config.dtype != "auto":
        return config
    device = next(iter(list_accelerators()), "cpu")
    return replace(config, dtype="bf16" if has_fast_bf16(device) else "fp32")


def partition_of(config: RunConfig, targets: Targets) -> str:
    """The partition's text: the user's, or the data set's own, or by classes; iid where rows have none or several."""
    if config.partition != "auto":
        return config.partition
    return get_default_partition(config.dataset) or (USUAL if targets in ("classes", "numbers") else "iid")


def _choose_head(config: RunConfig, targets: Targets) -> str:
    """How the head starts where the user does not say: as suits the rule or the data, as far as privacy allows."""
    rule: Strategy = build_part(config, "strategy")
    if isinstance(rule, TaskStrategy) and rule.makes_head:
        return "zero"
    private: Mechanism | SecureSum | None = build_part(config, "privacy")
    own = get_default_head(config.dataset)
    if own is not None:
        return "zero" if isinstance(private, Mechanism) else own
    of_method: str = build_part(config, "peft").suited_head if private is None else ""
    return of_method or _choose_private_head(private, targets)


def _choose_private_head(mechanism: Mechanism | SecureSum | None, targets: Targets) -> str:
    """How the head starts where the user does not say: from all that may be asked for."""
    if mechanism is None or isinstance(mechanism, SecureSum):  # which adds up sums over rows, too
        return "ridge"
    has_one = mechanism.protects and mechanism.start != 0 and targets not in ("numbers", "labels")
    if not has_one:
        return "zero"
    # Moments are worth their share of one noise if they tell how to whiten features; noise leaves most of directions.
    return "private_ridge(dimensions=512)" if can_plan_whitening(mechanism) else "private_centroids"


def set_client_count(config: RunConfig, clients: int) -> RunConfig:
    """Return the configuration with the number of clients in its strategy, if the strategy depends on it.

    Raises:
        ConfigError: the strategy names another number.
    """
    strategy: Strategy = build_part(config, "strategy")
    if not isinstance(strategy, CountsClients):
        return config
    return replace(config, strategy=format_part(strategy.set_client_count(clients)))


def set_task_schedule(config: RunConfig, tasks: TaskSequence | None) -> RunConfig:
    """Return the configuration with the schedule of its tasks in its strategy, if the strategy depends on it.

    Raises:
        ConfigError: the strategy needs tasks, and there are none; or it names another schedule.
    """
    strategy: Strategy = build_part(config, "strategy")
    if not isinstance(strategy, TaskStrategy):
        return config
    name = config.strategy.partition("(")[0].strip()
    if tasks is None:
        raise ConfigError(
            f"FP1295 {name} is a rule for tasks that come one after the other: take --dataset 'tasks(a, b)', or "
            "'tasks(a, classes=2)', or another strategy"
        )
    schedule = tasks.schedule
    settings: dict[str, Any] = {"tasks": schedule.tasks, "every": schedule.every, "late": schedule.late}
    for setting, value in settings.items():
        given = getattr(strategy, setting)
        if given not in (0, value):
            raise ConfigError(
                f"FP1296 {config.strategy} names {setting}={given}, and the data set has {value}; leave it out"
            )
    return replace(config, strategy=format_part(replace(strategy, **settings)))

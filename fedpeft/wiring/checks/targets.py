"""What does not go with labels that are numbers, or several a row: what counts on one class each, or is unprotected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.models.abilities import StandardizesLabels
from fedpeft.models.tasks.classification import RowTask
from fedpeft.parts import name_of

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


def check_targets(setup: Setup) -> None:
    """Refuse a task without a metric or readable targets, and labels whose moments nothing protects.

    Settings that have no meaning without classes are refused, too.

    Raises:
        ConfigError, PrivacyError: says what, and what to do.
    """
    task, mechanism = setup.task, setup.mechanism
    who = f"the task {name_of(type(task))}"
    if not isinstance(task.metric, str) or not task.metric.strip():
        raise ConfigError(f"FP1343 {who}: metric must be the name of its main metric, got {task.metric!r:.80}")
    if task.targets and not isinstance(task, RowTask):
        raise ConfigError(
            f"FP1344 {who} has {task.targets} of whole examples (targets) but does not subclass "
            f"{RowTask.__module__}.RowTask, which reads and scores such examples; subclass it, or leave targets "
            "out"
        )
    if task.targets not in ("numbers", "labels"):
        return
    if isinstance(task, StandardizesLabels) and not task.known and mechanism is not None and mechanism.protects:
        raise PrivacyError(
            f"FP7112 the mean and deviation of the labels are sums over the examples, which {mechanism.name} does not "
            "protect; give public values, such as file(..., mean=50, deviation=10)"
        )

"""Values of `auto`: PEFT method, start of the head, drift correction, partition and precision that suit a run.

A value that depends on rows stays `auto` until the rows have been read. A run's folder keeps the chosen values, so that
the run stays the same on another machine, when it is continued, and when it is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedpeft.aggregation.head_start import HeadStart
from fedpeft.aggregation.shared_sums import is_personal, is_plain_mean
from fedpeft.aggregation.strategy import Strategy
from fedpeft.aggregation.task_rules import TaskStrategy
from fedpeft.data.partition import USUAL
from fedpeft.machine.hardware import has_fast_bf16, list_accelerators
from fedpeft.models.task import Targets
from fedpeft.peft.adapter import Layout
from fedpeft.peft.method import PeftMethod
from fedpeft.privacy.abilities import can_plan_whitening
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.profiles import ProfileTable

if TYPE_CHECKING:
    from fedpeft.wiring.run_spec import RunSpec

ADAPTER = "lora"
"""The default PEFT method."""

OF_IMAGES = "head2toe"
"""The PEFT method for images with classes: more accurate than an adapter on both sets of images, and ten times as fast
(`experiments/harm`, `experiments/ladder`)."""


def choose_method(spec: RunSpec, facts: DatasetInfo, groups: Sequence[ProfileTable]) -> str:
    """Return the text of the PEFT method that `auto` stands for.

    Settings about adapters, their aggregation, protection or attack, or about the start of a head on the last block
    are settings about lora.

    Args:
        spec: the run, as the user has described it.
        facts: what is known of the data.
        groups: groups of clients that differ.
    """
    return OF_IMAGES if spec.head is None and can_train_head_alone(spec, facts, groups) else ADAPTER


def can_train_head_alone(spec: RunSpec, facts: DatasetInfo, groups: Sequence[ProfileTable]) -> bool:
    """Return whether images have classes and no setting is about adapters."""
    classes_of_images = facts.kind == "image" and facts.task == "classification" and facts.tasks is None
    plain = is_plain_mean(spec.strategy) and not (spec.config.privacy or spec.attack)
    alike = not spec.config.ranks and not any(table.rank or table.alpha for table in groups)
    no_factors = not any(correction.needs for correction in spec.drift.corrections)
    return classes_of_images and plain and alike and no_factors


FAR_APART = 0.55
"""Label skew from which on losses are corrected. In `experiments/harm`, the correction helped from 0.58 on, and was not
needed up to 0.49."""


def choose_drift(rule: Strategy, head: HeadStart, facts: DatasetInfo, layout: Layout) -> str:
    """Return the drift correction that `auto` stands for in a run without privacy.

    Clients with different classes pull toward their own, and the loss is corrected for that. Clients with models of
    their own get no correction, because the shares of their own classes help them.
    """
    known = head.exchanges and not head.bounded and "head.weight" in layout.shapes
    if facts.task == "classification" and facts.tasks is None and known and not is_personal(rule, layout):
        return f"label_shift(least={FAR_APART})"
    return ""


def resolve_auto(spec: RunSpec, targets: Targets = "classes") -> RunSpec:
    """Return the run with the head, partition and precision that `auto` stands for.

    Args:
        spec: the run; if its PEFT method is still `auto`, the head stays `auto`.
        targets: what the rows' labels are; classes for a dataset that has not been read.
    """
    if spec.head is None and spec.method is not None:
        spec = spec.change(head=_choose_head(spec, spec.method, targets))
    spec = resolve_partition(spec, targets)
    if spec.config.dtype != "auto":
        return spec
    device = next(iter(list_accelerators()), "cpu")
    return spec.change(dtype="bf16" if has_fast_bf16(device) else "fp32")


def resolve_partition(spec: RunSpec, targets: Targets) -> RunSpec:
    """Return the run with the user's partition, or the dataset's own, or the usual one for its labels."""
    if spec.partitioner is not None:
        return spec
    usual = USUAL if targets in ("classes", "numbers") else "iid"
    return spec.change(partition=getattr(spec.dataset, "suited_partition", None) or usual)


def _choose_head(spec: RunSpec, method: PeftMethod, targets: Targets) -> str:
    """Return the start of the head that suits the rule or the data, as far as privacy allows."""
    if isinstance(spec.strategy, TaskStrategy) and spec.strategy.makes_head:
        return "zero"
    own = getattr(spec.dataset, "suited_head", None)
    if own is not None:
        return "zero" if spec.mechanism is not None else str(own)
    private = spec.mechanism is not None or spec.secure_sum is not None
    return ("" if private else method.suited_head) or _choose_private_head(spec.mechanism, targets)


def _choose_private_head(mechanism: Mechanism | None, targets: Targets) -> str:
    """Return the start of the head that uses all statistics which clients may send."""
    if mechanism is None:  # a secure sum adds up sums over rows, too
        return "ridge"
    has_one = mechanism.protects and mechanism.start != 0 and targets not in ("numbers", "labels")
    if not has_one:
        return "zero"
    # Moments are worth their share of one noise if they tell how to whiten features; noise leaves most of directions.
    return "private_ridge(dimensions=512)" if can_plan_whitening(mechanism) else "private_centroids"

"""The features of a client, in the one order in which its rounds pass through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.clients.broadcast import BroadcastStage
from fedpeft.clients.drift import parse_drift
from fedpeft.clients.drift_states import DriftStage
from fedpeft.clients.label_shift import LabelShiftStage
from fedpeft.clients.masking import Masking
from fedpeft.clients.own_tensors import OwnTensorsStage
from fedpeft.clients.personal import PersonalStage
from fedpeft.clients.privacy import choose_privacy
from fedpeft.clients.rule_half import StrategyStage
from fedpeft.clients.stages import ClientStage
from fedpeft.clients.tasks import TaskStage
from fedpeft.clients.walk import WalkStage
from fedpeft.clients.workbench import Workbench

from fedpeft.aggregation.head_start import HEADS
from fedpeft.aggregation.strategy import strategies
from fedpeft.communication.codec import parse_codec

if TYPE_CHECKING:
    from fedpeft.clients.client import ClientPlan


def attach_stages(bench: Workbench, plan: ClientPlan, masking: Masking | None) -> tuple[ClientStage, ...]:
    """Return the stages of the clients that one worker speaks for.

    The order matters. `begin` calls it downward: what stayed with the client replaces what arrived; the strategy's
    corrections act after those of the drift. `finish` calls it upward: the strategy narrows an update to the ranks
    that the server asked for before a drift correction compares it; tasks and privacy take out of the report what the
    walk has counted.
    """
    work, guard = bench.plan, plan.privacy.guard() if plan.privacy else None
    strategy, per_example = strategies.build(plan.strategy), guard is not None and guard.mechanism.per_example
    offered = (
        None if guard is None else choose_privacy(guard, masking, work, HEADS.build(plan.head)),
        None if plan.met is None else TaskStage(plan.met, work.classes, work.seed),
        None if guard is not None and guard.mechanism.whitens else LabelShiftStage(bench),
        BroadcastStage(strategy, work.layout, parse_codec(plan.downlink), plan.start),
        OwnTensorsStage(),
        DriftStage(parse_drift(plan.drift), parse_codec(plan.lossless)),
        None if per_example else WalkStage(bench),  # DP-SGD draws the examples of each step
        StrategyStage(strategy, work.layout, work.seed),
        None if strategy.personal_pull is None else PersonalStage(strategy.personal_pull),
    )
    return tuple(stage for stage in offered if stage is not None)

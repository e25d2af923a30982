"""The features of a client, in the one order in which its rounds pass through them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.clients.broadcast import BroadcastStage
from fedpeft.clients.drift_states import DriftStage
from fedpeft.clients.encoded_reports import EncodedReports
from fedpeft.clients.label_shift import LabelShiftStage
from fedpeft.clients.masked_reports import MaskedReports
from fedpeft.clients.masking import Masking
from fedpeft.clients.own_tensors import OwnTensorsStage
from fedpeft.clients.personal import PersonalStage
from fedpeft.clients.privacy import PrivacyStage, RowPrivacyStage
from fedpeft.clients.rule_half import StrategyStage
from fedpeft.clients.stages import ClientStage, Reports
from fedpeft.clients.tasks import TaskStage
from fedpeft.clients.walk import WalkStage
from fedpeft.clients.workbench import Workbench

from fedpeft.aggregation.abilities import PersonalModel

if TYPE_CHECKING:
    from fedpeft.clients.client import ClientPlan

from fedpeft.privacy.abilities import is_whitened


def attach_features(bench: Workbench, plan: ClientPlan) -> tuple[tuple[ClientStage, ...], Reports]:
    """Return the stages of the clients that one worker speaks for, and how they report.

    The order matters. `begin` calls it downward: what stayed with the client replaces what arrived, and the strategy's
    corrections act after those of the drift. `finish` calls it upward. The strategy narrows an update to the ranks that
    the server asked for before a drift correction compares it. Tasks and privacy then remove the walk's counts from the
    report. The reports come last: they only pass on what the stages leave.
    """
    work, strategy, head = bench.plan, plan.strategy, plan.head
    guard = plan.privacy.guard() if plan.privacy else None
    if plan.masks is None:
        reports: Reports = EncodedReports(bench, plan.uplink, plan.statistics, head, strategy, guard)
    else:
        reports = MaskedReports(bench, Masking(plan.masks, plan.store, work.seed), guard, head)
    sampling = None if guard is None else guard.mechanism.example_sampling
    offered = (
        None if guard is None else PrivacyStage(guard),
        None
        if guard is None or sampling is None
        else RowPrivacyStage(guard, sampling, reports.choose_rate, work, head),
        None if plan.met is None else TaskStage(plan.met, work.classes, work.seed),
        None if guard is not None and is_whitened(guard.mechanism) else LabelShiftStage(bench),
        BroadcastStage(strategy, work.layout, plan.downlink, plan.start),
        OwnTensorsStage(),
        DriftStage(plan.drift, plan.lossless),
        None if sampling is not None else WalkStage(bench),  # DP-SGD draws the examples of each step
        StrategyStage(strategy, work.layout, work.seed),
        PersonalStage(strategy, bench) if isinstance(strategy, PersonalModel) else None,
    )
    return tuple(stage for stage in offered if stage is not None), reports

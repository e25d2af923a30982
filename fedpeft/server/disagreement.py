"""`--measure disagreement` in the round loop: compare the updates of each round."""

from __future__ import annotations

from dataclasses import replace

from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.run.records import plain
from fedpeft.run.setup import Setup
from fedpeft.server.hooks import RoundHook
from fedpeft.server.learned import products
from fedpeft.server.progress import Progress
from fedpeft.server.round_log import RoundLog
from fedpeft.trust.disagreement import Watched


class DisagreementHook(RoundHook):
    """Compares the updates of each round, and writes disagreement.jsonl."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def aggregator(self, inner: Aggregator, plan: RoundPlan, state: Progress) -> Aggregator:
        """Watch the updates that `inner` takes."""
        return Watched(inner, self.setup.layout, products(self.setup))

    def measure(self, state: Progress, log: RoundLog) -> None:
        """Record how the clients disagree; a round of fewer than two updates has no line."""
        disagreement = log.aggregation.disagreement
        if disagreement is not None:
            log.result = replace(
                log.result, cancelled_share=disagreement.cancelled, sign_conflict=disagreement.conflict
            )
            log.lines["disagreement.jsonl"] = [plain(disagreement.line(log.plan.number))]

"""`--measure disagreement` in the round loop: compare the updates of each round."""

from __future__ import annotations

from dataclasses import replace

from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.run.records import convert_to_plain
from fedpeft.run.setup import Setup
from fedpeft.server.hooks import RoundHook
from fedpeft.server.learned import has_products
from fedpeft.server.progress import ServerState
from fedpeft.server.round_log import RoundLog
from fedpeft.trust.disagreement import WatchingAggregator


class DisagreementHook(RoundHook):
    """Compares the updates of each round, and writes disagreement.jsonl."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def aggregator(self, inner: Aggregator, plan: RoundPlan, state: ServerState) -> Aggregator:
        """Watch the updates that `inner` takes."""
        return WatchingAggregator(inner, self.setup.layout, has_products(self.setup))

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Record how the clients disagree; a round of fewer than two updates has no line."""
        disagreement = log.aggregation.disagreement
        if disagreement is not None:
            log.result = replace(
                log.result, cancelled_share=disagreement.cancelled, sign_conflict=disagreement.conflict
            )
            log.lines["disagreement.jsonl"] = [convert_to_plain(disagreement.to_dict(log.plan.number))]

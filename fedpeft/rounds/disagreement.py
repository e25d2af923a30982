"""`--measure disagreement` in the round loop: compare the updates of each round."""

from __future__ import annotations

from dataclasses import replace

from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.machine.json_values import convert_to_plain
from fedpeft.rounds.adapter_summary import has_products
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import RoundLog
from fedpeft.trust.disagreement import DisagreementAggregator
from fedpeft.wiring.setup import Setup


class DisagreementHook(RoundHook):
    """Compares the updates of each round, and writes disagreement.jsonl."""

    def __init__(self, setup: Setup) -> None:
        """Hold the parts of the run."""
        self.setup = setup

    def aggregator(self, inner: Aggregator, plan: RoundPlan, state: ServerState) -> Aggregator:
        """Watch the updates that `inner` takes."""
        return DisagreementAggregator(inner, self.setup.layout, has_products(self.setup))

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Record how the clients disagree; a round of fewer than two updates has no line."""
        disagreement = log.aggregation.disagreement
        if disagreement is not None:
            log.result = replace(log.result, cancelled_share=disagreement.canceled, sign_conflict=disagreement.conflict)
            log.lines["disagreement.jsonl"] = [convert_to_plain(disagreement.to_dict(log.plan.number))]

"""Disagreement: what the adapter has learned, layer by layer, and where clients pull in different directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedpeft.parts import setting
from fedpeft.wiring.measurement import Measurement, TrainedRun

if TYPE_CHECKING:
    from fedpeft.rounds.features import RunParts
    from fedpeft.rounds.hooks import RoundHook


@dataclass(frozen=True)
class Disagreement(Measurement):
    """Comparison of each round's clients, and the finished adapter's spectra (`fedpeft.trust.disagreement`).

    If nobody may see a client's update, or privacy covers the released model alone, the section has only the spectra.
    """

    causal: bool = setting(
        True, "evaluate the model without each layer's leading direction, and shrunk to the same norm instead"
    )

    of_kept_state: ClassVar[bool] = True

    def attach(self, run: RunParts) -> RoundHook | None:
        """Compare the updates of each round, unless privacy hides them."""
        from fedpeft.rounds.disagreement import DisagreementHook

        protected = run.setup.secure_sum is not None or run.setup.mechanism is not None
        return None if protected else DisagreementHook(run.setup)

    def ask(self, run: TrainedRun) -> dict[str, Any]:
        """Describe what the kept adapter has learned, and evaluate it without leading directions."""
        from fedpeft.rounds.adapter_summary import has_products, measure_causal_effect, summarize_run

        found = summarize_run(run.setup, run.state, run.records.read("disagreement.jsonl"))
        state, residual = run.state.result
        if self.causal and has_products(run.setup) and not residual and run.evaluate is not None:
            found["causal"] = measure_causal_effect(run.setup, state, run.evaluate)
        return found

    @classmethod
    def lines(cls, section: Mapping[str, Any]) -> dict[str, str]:
        """Return how clients cancel each other, who stands apart, and what leading directions are worth."""
        from fedpeft.rounds.adapter_summary import CAUSAL

        lines = {}
        if section.get("cancelled") is not None:
            lines["share of the updates that cancels, last round"] = f"{section['cancelled']:.3f}"
        for line in section.get("advice") or []:
            lines["clients"] = f"{lines['clients']}; {line}" if "clients" in lines else line
        if causal := section.get("causal"):
            loss = [causal[name]["loss"] for name in CAUSAL]
            lines["validation loss; without leading directions; shrunk alike"] = "; ".join(f"{x:.4f}" for x in loss)
        return lines


part = Disagreement

"""More precision when progress stalls (DAdaQuant, Hoenig et al., arXiv 2111.00465, section 3.4).

    running loss:  l_t = smoothing * l_{t-1} + (1 - smoothing) * loss_t
    a stall:       `patience` rounds without a new lowest l; then bits <- min(high, bits + step), and the count restarts

Deviations:

- DAdaQuant doubles its levels, which is one more bit; codecs with entropy coding have finer steps.
- DAdaQuant calls training converged when l_t >= l_{t+1-patience}. That compares two rounds, `patience` - 1 apart, in
  any round at least `patience` after the last increase. Here none of `patience` rounds in a row may have reached a new
  lowest, so a loss that oscillates around a falling trend gets more time.
- Its loss is that of the broadcast state, over the cohort's examples. Here it is the mean over the steps of training,
  which needs no additional pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.communication.precision_rule import Bits, PrecisionRule, Situation, limit_bits
from fedpeft.parts import setting


@dataclass(frozen=True)
class OverTime(PrecisionRule):
    """The codec's own bits at first, and more whenever the running loss stops falling."""

    high: float = setting(4.0, "the most bits per parameter", above=0, high=10)
    step: float = setting(0.5, "bits added when progress stalls", above=0, high=8)
    smoothing: float = setting(0.9, "weight of the past in the running loss", low=0, below=1)
    patience: int = setting(3, "rounds without a lower running loss that count as a stall", low=1)

    reads_losses = True

    def count_stalls(self, losses: Sequence[float]) -> int:
        """Return how often progress has stalled, from the training losses of all rounds so far."""
        running, lowest, waited, count = None, float("inf"), 0, 0
        for loss in losses:
            running = loss if running is None else self.smoothing * running + (1 - self.smoothing) * loss
            waited = 0 if running < lowest else waited + 1
            lowest = min(lowest, running)
            if waited >= self.patience:
                count, waited, lowest = count + 1, 0, running
        return count

    def bits(self, bits: Bits, situation: Situation) -> Bits:
        """Return bits that grow by `step` for each stall so far, up to `high`; never fewer than without the rule."""
        more = self.step * self.count_stalls(situation.losses)
        return limit_bits({client: max(b, min(self.high, b + more)) for client, b in bits.items()})


part = OverTime

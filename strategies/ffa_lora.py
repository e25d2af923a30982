"""FFA-LoRA: one shared, frozen A; only B is trained and averaged (Sun et al., arXiv 2403.12313).

    B <- (1/s) sum_k p_k s_k B_k,   A = A_0

The rule is exact, because with a common A the product is linear in B. Only B and the head go up: half the bytes of the
factors.

Deviation: the paper has one rank and one alpha. Here client k uses the first r_k rows of A, and its B_k counts as 0
beyond rank r_k, as in dW*. The scales s_k / s make the mean of B exact for different alphas. A client that lacks a rank
then pulls this column of B towards 0, even without training. With `missing_ranks=keep` it adds no change to the column
(`fedpeft.aggregation.missing_ranks`).

Use it if the mean must be exact at half of the bytes, for example under noise or secure sums.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.factors import get_lora_form
from fedpeft.aggregation.missing_ranks import declare_missing_ranks
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Update, pad_ranks, select_leading_ranks
from fedpeft.peft.adapter import AdapterShape, JointMeaning, Layout, Role, State


@dataclass(frozen=True)
class FFALoRA(LinearStrategy):
    """The mean over the one factor that is trained while the other is shared and frozen."""

    missing_ranks: str = declare_missing_ranks()

    mixed_ranks: ClassVar[bool] = True
    adds_deltas: ClassVar[bool] = True
    preserves: ClassVar[tuple[JointMeaning, ...]] = ("product", "all ranks")

    def get_trained_factor(self, round_number: int) -> Role:
        """Return the factor that a round trains; the other one is frozen and the same at all clients."""
        return "lora_B"

    def list_trained(self, layout: Layout, round_number: int) -> frozenset[str]:
        """Return all names but those of the frozen factor."""
        factor = self.get_trained_factor(round_number)
        return frozenset(t.name for t in layout.tensors if t.role not in {"lora_A", "lora_B"} - {factor})

    def dispatch(self, state: State, layout: Layout, form: AdapterShape | None, round_number: int) -> State:
        """Return the leading ranks, with s / s_k in the trained factor, so that the frozen one is the same for all."""
        return select_leading_ranks(state, layout, form, carrier=self.get_trained_factor(round_number))

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """Return the trained factor's change in the unit of the global scale, (s_k / s) delta_k, padded."""
        unit = update.scale / get_lora_form(layout).scale
        result = {}
        for name, delta in update.delta.items():
            if layout.by_name[name].role not in ("lora_A", "lora_B"):
                result[name] = delta
                continue
            result[name] = pad_ranks(delta * unit, state[name])
            if self.missing_ranks == "zero":
                # B_k is 0 in the ranks that the client lacks: relative to the global B, the change is -B.
                result[name] -= state[name] * pad_ranks(delta.new_zeros(delta.shape) + 1, state[name]).eq(0)
        return result


part = FFALoRA

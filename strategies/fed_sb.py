"""Fed-SB: only a small square R between frozen factors trains, so its mean is exact (Singhal et al., arXiv 2502.15436).

    W0 + s B R A with B (out, r) and A (r, in) fixed;   R <- (1/s) sum_k p_k s_k R_k

r^2 numbers per layer travel. The PEFT method must have tensors `...lora_R...` of role `plain` and shape (r, r), and A
and B as buffers that are the same at all clients.

Deviations: the paper takes B and A from an SVD of a gradient (LoRA-SB), which costs privacy for private data. The PEFT
method `lora_sb` takes them from W0, which is public. Alphas may differ (the paper has one), but ranks may not, because
a smaller R would need other B and A.

Use it with `lora_sb` if bytes or noise are the limit: r^2 numbers per layer travel.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Update
from fedpeft.errors import ConfigError
from fedpeft.peft.adapter import AdapterShape, Layout, State


@dataclass(frozen=True)
class FedSB(LinearStrategy):
    """The mean of R in the unit of the global scale."""

    needs_lora: ClassVar[bool] = False
    mixed_ranks: ClassVar[bool] = True
    adds_deltas: ClassVar[bool] = True

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse a method without R, and mixed ranks.

        Raises:
            ConfigError: the PEFT method has no R, or a client's rank is not the global one.
        """
        if not find_cores(layout):
            raise ConfigError(
                "FP1483 fed_sb trains the square R of B R A; choose a peft method that has tensors named lora_R"
            )
        if any(form and layout.form and form.rank != layout.form.rank for form in forms):
            raise ConfigError("FP1484 fed_sb needs the same rank at all clients (alphas may differ); give one rank")

    def dispatch(self, state: State, layout: Layout, form: AdapterShape | None, round_number: int) -> State:
        """Return the global state with (s / s_k) R."""
        unit, cores = _compute_unit(layout, form), find_cores(layout)
        return {name: tensor / unit if name in cores else tensor.clone() for name, tensor in state.items()}

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """Return (s_k / s) times the delta of R, and the head's delta."""
        unit, cores = _compute_unit(layout, update.form), find_cores(layout)
        return {name: delta * unit if name in cores else delta for name, delta in update.delta.items()}


def _compute_unit(layout: Layout, form: AdapterShape | None) -> float:
    return 1.0 if form is None or layout.form is None else form.scale / layout.form.scale


def find_cores(layout: Layout) -> frozenset[str]:
    """Return the names of the tensors R."""
    return frozenset(t.name for t in layout.tensors if t.role == "plain" and "lora_R" in t.name)


part = FedSB

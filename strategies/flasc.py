"""FLASC: sparse traffic, dense local training (Kuo et al., arXiv 2406.05233).

    down: the entries of the adapter largest in magnitude, a fraction `down` of them, the others as 0
    up:   the entries of the delta largest in magnitude, a fraction `up` of them;   x <- x + mean of the sparse deltas

The paper's server optimizer is Adam, which you add with --server-optimizer. Entries are selected over the whole
adapter, so layers compete for the budget. Each zero costs one bit in both directions (`cast`), less with an entropy
coder.

Deviation: the head, which the paper trains densely, is exempt from both selections. Since B starts at 0 and A does not,
round 1 sends a sparse A.

Use it for sparse traffic in both directions; on 20 Newsgroups, the codec `small` sent less and lost less.
"""

from dataclasses import dataclass

import torch

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.parts import setting
from fedpeft.peft.adapter import AdapterShape, Layout, State


@dataclass(frozen=True)
class FLASC(LinearStrategy):
    """The mean of sparse deltas to a sparse start."""

    arrives_whole = False

    down: float = setting(0.25, "fraction of the LoRA entries sent down (paper: 1/4 to 1/64)", above=0, high=1)
    up: float = setting(0.25, "fraction of the LoRA entries of a delta sent up (paper: 1/4 to 1/64)", above=0, high=1)

    def dispatch(self, state: State, layout: Layout, form: AdapterShape | None, round_number: int) -> State:
        """Return the adapter with its largest entries."""
        return keep_largest(super().dispatch(state, layout, form, round_number), layout, self.down)

    def select_update(self, delta: State, received: State, trained: State, layout: Layout) -> State:
        """Return the delta's largest entries."""
        return keep_largest(delta, layout, self.up)


def keep_largest(state: State, layout: Layout, fraction: float) -> State:
    """Set LoRA entries of `state` to 0, except the `fraction` with the largest magnitudes; keep other tensors.

    All entries with the magnitude of the threshold are kept, so that the result does not depend on their order.
    """
    factors = [t.name for t in layout.tensors if t.role in ("lora_A", "lora_B") and t.name in state]
    if not factors:
        return state
    magnitudes = torch.cat([state[name].abs().flatten() for name in factors])
    kept = max(1, round(fraction * len(magnitudes)))
    threshold = magnitudes.kthvalue(len(magnitudes) - kept + 1).values
    sparse = {name: torch.where(state[name].abs() < threshold, 0.0, state[name]) for name in factors}
    return {name: sparse.get(name, tensor) for name, tensor in state.items()}


part = FLASC

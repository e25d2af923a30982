"""FedBuff: buffered asynchronous aggregation, for fleets of very uneven speed (Nguyen et al., arXiv 2106.06639).

The cohort is the number of clients that train at a time. As soon as K of them have answered, the server steps along

    (1 / sum p) sum_k p_k (1 + tau_k)^-a delta_k

Here tau_k counts the steps of the server since it sent client k its state. Each client that answers makes room for the
next one. Nobody waits for the slowest client, whose late updates count less. The scale is not divided out again, so a
buffer of stale updates makes a smaller step. If K is the whole cohort, no update is stale, and the rule is fedit.

Staleness depends on timing. So equal seeds do not give equal runs on real clients; in a simulation with one worker they
do. The paper's server learning rate is that of --server-optimizer; its weights are uniform (weighting=uniform).

Use it if clients differ in speed and the others should not wait for the slowest.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Update
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State


@dataclass(frozen=True)
class FedBuff(LinearStrategy):
    """The weighted mean of the first K updates, stale ones scaled down."""

    needs_lora: ClassVar[bool] = False

    buffer: int = setting(10, "K: updates per step of the server (the paper's 10)", low=1)
    exponent: float = setting(0.5, "a in (1 + staleness)^-a (the paper's 1/2); 0: staleness does not matter", low=0)

    def get_buffer_size(self) -> int:
        """Return K."""
        return self.buffer

    def contribution(self, update: Update, state: State, layout: Layout) -> State:
        """Return (1 + tau)^-a delta."""
        scale = (1 + update.staleness) ** -self.exponent
        return {name: delta * scale for name, delta in update.delta.items()}


part = FedBuff

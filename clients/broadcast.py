"""The broadcast, decoded, compared with the server's record, and rounded to the client's adapter precision."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fedpeft.clients.stages import ClientRound, ClientStage
from fedpeft.clients.store import add_label, select_section

from fedpeft.aggregation.owned_ranks import get_held_form
from fedpeft.aggregation.strategy import Strategy
from fedpeft.aggregation.update import select_leading_ranks
from fedpeft.communication.broadcast_digests import check_released
from fedpeft.communication.codec import Codec
from fedpeft.communication.downlink import Arrivals, create_start
from fedpeft.communication.messages import Instruction
from fedpeft.peft.adapter import AdapterShape, Layout, State, round_to_precision

LABEL = "held"
"""Section of the client's state that later payloads build on."""


class BroadcastStage(ClientStage):
    """Decodes the adapter that a client starts from.

    Args:
        layout: the global tensors.
        start: their seeded start, which a lossy downlink counts from; empty: the downlink is lossless.
    """

    def __init__(self, strategy: Strategy, layout: Layout, codec: Codec, start: State) -> None:
        """Hold the strategy, the layout and the seeded start, and prepare to decode with `codec`."""
        self.strategy, self.layout, self.start = strategy, layout, start
        self.arrivals = Arrivals(codec)

    def keeps(self, instruction: Instruction) -> bool:
        """Return whether payloads build on those of earlier rounds."""
        return not self.arrivals.codec.lossless

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round with the decoded adapter as its received state.

        Raises:
            PayloadError: the payload can't be decoded, or differs from what the server has recorded for all clients.
        """
        asked, layout, state = client_round.instruction, client_round.layout, client_round.state
        start = create_start(self.strategy, self.start, self.layout, asked.form) if self.start else self.start
        before = {asked.acknowledged: select_section(state, LABEL)}
        sent = self.arrivals.of(asked.payload, layout.shapes, start, before)
        check_released(asked, sent.comparable_state, client_round.private, partial(self._shrink, client_round.job.form))
        job = replace(client_round.job, received=round_to_precision(sent.state, asked.adapter_precision))
        return replace(client_round, job=job, state=state | add_label(LABEL, sent.moved))

    def _shrink(self, form: AdapterShape | None, state: State, rank: int) -> State | None:
        """Return what the server sends to a client of a smaller rank, given the `state` in this client's `form`.

        None: the rule sends more than the leading ranks, or the codec rounds each adapter shape separately.
        """
        layout = self.layout
        if form is None or type(self.strategy).dispatch is not Strategy.dispatch or not self.arrivals.codec.lossless:
            return None
        smaller = get_held_form(self.strategy, layout, layout.get_form(rank))
        if smaller is None or len({f.scale for f in (form, smaller, layout.form) if f is not None}) > 1:
            return None  # different scales round differently
        return select_leading_ranks(state, layout.replace_form(form).select(state), smaller)

"""What a round sends down, and what the server therefore knows that its clients start from."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.adapter import ClientForm, Layout, State
from fedpeft.codec import Codec, decode
from fedpeft.residual import Residual
from fedpeft.strategy import Strategy


@dataclass(frozen=True)
class Package:
    """A payload, and the state that it decodes to."""

    payload: bytes
    state: State


class Downlink:
    """One round's payloads, each encoded once and decoded again, so that the server has its clients' start bit for bit.

    Clients of one form are sent the same. Where the strategy leaves tensors with their clients, only newcomers are
    sent them, with their initial values.

    Args:
        state: the global state.
        residual: what exact rules have put into the base.
        variate: the server's control variate (SCAFFOLD); None: there is none.
    """

    def __init__(
        self,
        strategy: Strategy,
        layout: Layout,
        codec: Codec,
        state: State,
        residual: Residual,
        round: int,
        variate: State | None = None,
    ) -> None:
        self._strategy, self._layout, self._codec = strategy, layout, codec
        self._state, self._residual, self._round = state, residual, round
        self.trained = strategy.trained(layout, round)
        self.private = strategy.private(layout)
        self.shared = self.trained - self.private
        """What updates hold."""
        self.variate = codec.encode({n: variate[n] for n in sorted(self.shared)}) if variate is not None else b""
        self._packages: dict[tuple[ClientForm | None, bool], Package] = {}
        self._bases: dict[int, bytes] = {}

    def package(self, form: ClientForm | None, newcomer: bool) -> Package:
        """The adapter for a client that holds `form`."""
        key = form, newcomer and bool(self.private)
        if key not in self._packages:
            sent = self._strategy.dispatch(self._state, self._layout, form, self._round)
            if not key[1]:
                sent = {name: tensor for name, tensor in sent.items() if name not in self.private}
            shapes = self._layout.with_form(form).shapes
            payload = self._codec.encode(sent, shapes=shapes)
            self._packages[key] = Package(payload, decode(payload, shapes))
        return self._packages[key]

    def base(self, last: int) -> bytes:
        """What brings the base of a client up to date that took part in round `last` (0: never)."""
        held = max(0, last - 1)  # the base of a round is that after the round before
        if held not in self._bases:
            self._bases[held] = self._residual.payload(held, self._codec)
        return self._bases[held]

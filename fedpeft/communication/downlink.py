"""The downlink of a round, and the state from which the server therefore knows that its clients start.

Without loss, every client receives the whole state. With a lossy codec it receives a movement: the state less the
seeded start, which every client can compute. A codec that ends in `grid` sends the movement as a difference from the
version that the client holds, or from the start, whichever is smaller. Both lead to the same bits, so all clients of
one form have the same version after a round. The next round corrects what the codec leaves out.

The server keeps one chain of versions for each form, and no copy per client. A version is the state of one round in one
form (LoRA rank and alpha), as a lossy codec has encoded it. It is kept as the payload that leads to it from the seeded
start, so a chain takes about as many bytes as one newcomer per round. Versions that nobody holds any more are dropped,
and so are the oldest beyond `LONGEST`: a client that returns after so long receives the payload from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch

from fedpeft.aggregation.abilities import choose_ranks
from fedpeft.aggregation.factors import move_ranks_to_front
from fedpeft.aggregation.grouped_rules import GroupedStrategy
from fedpeft.aggregation.owned_ranks import get_held_form
from fedpeft.aggregation.strategy import Strategy
from fedpeft.communication.base_residual import Residual
from fedpeft.communication.broadcast_digests import compute_digest, format_state_name
from fedpeft.communication.codec import Codec, parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.messages import Instruction
from fedpeft.communication.payload import Reader, Shape, read_payload
from fedpeft.communication.steps import get_step_name
from fedpeft.communication.uplink import find_preset
from fedpeft.errors import ConfigError
from fedpeft.peft.adapter import AdapterShape, Layout, State, round_to_precision, subtract_states

DOWNLINKS: Final[Mapping[str, str]] = {
    "medium": "grid(bits=5.0) | rans",
    "small": "grid(bits=4.0) | rans",
    "tiny": "grid(bits=1.94) | rans",
}
"""The codec of the downlink for each preset of `--codec` or `--downlink`."""


def parse_downlink(text: str, codec: str, lossless: str) -> Codec:
    """Build the codec that `--downlink` describes.

    Args:
        text: a preset, a codec, or "auto", which follows `codec`.
        codec: the value of `--codec`.
        lossless: the run's own lossless codec, which "fp32" selects.

    Raises:
        ConfigError: see `parse_codec`; or the codec would need another reference for each client, or change the state's
            length.
    """
    name = text.strip()
    if name == "auto":
        name = find_preset(codec) if find_preset(codec) in DOWNLINKS else lossless
    made = parse_codec(lossless if name == "fp32" else DOWNLINKS.get(name, name))
    if any(step.needs_reference for step in made.steps):
        raise ConfigError(f"FP1058 --downlink {text!r}: with delta, clients would end at different states; use grid")
    if any(step.takes_turns for step in made.steps):
        raise ConfigError(
            f"FP1059 --downlink {text!r}: segments divide updates among many clients, but there is one state; leave "
            "segments out"
        )
    if made.gain != "none":
        raise ConfigError(
            f"FP1060 --downlink {text!r}: gain corrects the mean of many updates, but there is one state; leave "
            "gain out"
        )
    return made


def explain_uncompared(
    strategy: Strategy, layout: Layout, codec: Codec, form: AdapterShape | None, seed: int, round_number: int
) -> str:
    """Return why clients can't compare the state that they receive in a `form`; both ends of the wire compute it.

    Returns:
        One of `fedpeft.communication.broadcast_digests.UNCOMPARED`, or an empty text: they compare digests of it.
    """
    if isinstance(strategy, GroupedStrategy):
        return "groups"
    if choose_ranks(strategy, layout, form, seed, round_number, 0):
        return "ranks"
    return "" if codec.lossless or codec.quantizer.chains else "lossy"


def fix_step_size(codec: Codec, payload: bytes, shapes: Mapping[str, Shape]) -> Codec:
    """Return a codec that chains states, at the step size of `payload`, which it has made.

    It then encodes a part of the same state.
    """
    quantizer = codec.quantizer
    parameters = dict(read_payload(payload, shapes)[0].steps)[get_step_name(quantizer)]
    return replace(codec, tensor_steps=(*codec.tensor_steps[:-1], quantizer.as_in(Reader(parameters))))


def create_start(strategy: Strategy, start: State, layout: Layout, form: AdapterShape | None) -> State:
    """Return the seeded start in a client's form, which movements count from; the same on both ends."""
    return strategy.dispatch(start, layout, form, 1)


@dataclass(frozen=True)
class Arrival:
    """A decoded payload: the state that the client starts from, and the movement that a later one may build on."""

    state: State
    moved: State

    @property
    def comparable_state(self) -> State:
        """The part with the same bits on every machine, if there is one: a start in a smaller form may be rounded."""
        return self.moved or self.state


def decode_arrival(
    payload: bytes, codec: Codec, shapes: Mapping[str, Shape], start: State, held: Mapping[int, State]
) -> Arrival:
    """Decode the server's payload.

    Args:
        payload: see `Downlink.create_package`.
        codec: codec of the downlink.
        shapes: shapes of the client's tensors.
        start: the start in the client's form (`create_start`); not needed by a lossless codec.
        held: the movements that the client holds, by version.

    Raises:
        PayloadError: see `fedpeft.communication.decoding.decode`.
    """
    sent = decode(payload, shapes, references=held, agreed=codec.steps)
    if codec.lossless:
        return Arrival(sent, {})
    return Arrival({name: start[name] + moved for name, moved in sent.items()}, sent)


class Arrivals:
    """The decoded payloads of one worker's clients: without loss, all clients of one form receive the same.

    Args:
        codec: codec of the downlink.
    """

    def __init__(self, codec: Codec) -> None:
        """Hold the codec; no payload is decoded yet."""
        self.codec = codec
        self._last: tuple[bytes, Mapping[str, Shape], Arrival] | None = None

    def of(self, payload: bytes, shapes: Mapping[str, Shape], start: State, held: Mapping[int, State]) -> Arrival:
        """Decode a payload as `decode_arrival` does.

        If a client receives the same as the previous one, both share the tensors, which nobody changes in place.
        """
        if not self.codec.lossless:
            return decode_arrival(payload, self.codec, shapes, start, held)
        if self._last is None or self._last[0] != payload or self._last[1] != shapes:
            self._last = payload, shapes, decode_arrival(payload, self.codec, shapes, start, held)
        return self._last[2]


def compute_balanced_weights(moved: State) -> State:
    """Return weights in (0, 1] that let a tensor's step grow with the root of its magnitude.

    With one step for all, a head solved in closed form gains nothing. Its entries are thirty times as large as those of
    the LoRA factors, so their relative error is thirty times as small (`experiments.codecs.states`).
    """
    rms = {
        name: float(tensor.double().square().mean()) ** 0.5 if tensor.numel() else 0.0 for name, tensor in moved.items()
    }
    least = min((size for size in rms.values() if size > 0), default=0.0)
    return {
        name: torch.full_like(tensor, (least / rms[name]) ** 0.5 if rms[name] > 0 else 1.0)
        for name, tensor in moved.items()
    }


@dataclass(frozen=True)
class Package:
    """An encoded adapter.

    Attributes:
        payload: the bytes.
        state: the state that the payload leads to.
        base: the version that it builds on; 0: the start; None: nothing.
        ranks: the ranks of the global factors that it contains; empty: the leading ones.
    """

    payload: bytes
    state: State
    base: int | None
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class SentState:
    """The messages to a client, kept until it answers.

    Attributes:
        instruction: the instruction.
        package: the adapter.
        base_bytes: bytes that bring the client's base up to date.
    """

    instruction: Instruction
    package: Package
    base_bytes: int = 0

    @property
    def state(self) -> State:
        """The state that the client starts from, in its precision."""
        return round_to_precision(self.package.state, self.instruction.adapter_precision)

    @property
    def bytes(self) -> int:
        """The bytes of all parts together."""
        return (
            len(self.package.payload) + self.base_bytes + len(self.instruction.correction) + len(self.instruction.told)
        )


class Downlink:
    """The payloads of one round, each encoded once and decoded again, so the server knows its clients' exact start.

    Clients of one form that hold the same version receive the same payload. If the strategy leaves tensors with their
    clients, only newcomers receive them, with their initial values.

    Args:
        strategy: the strategy.
        layout: the tensors of the adapter.
        codec: codec of the state.
        lossless: codec of the residual.
        state: the global state.
        start: the seeded start.
        versions: versions of earlier rounds.
        residual: what exact rules have added to the base.
        round_number: the round.
        seed: seed of the run, which decides the ranks of a client.
    """

    def __init__(  # noqa: PLR0913
        self,
        strategy: Strategy,
        layout: Layout,
        codec: Codec,
        lossless: Codec,
        state: State,
        start: State,
        versions: Versions,
        residual: Residual,
        round_number: int,
        seed: int = 0,
    ) -> None:
        """Hold the state and select the tensors that the round trains; encode nothing yet."""
        self._strategy, self._layout, self._codec, self._lossless = strategy, layout, codec, lossless
        self._state, self._start, self._versions = state, start, versions
        self._residual, self._round, self._seed = residual, round_number, seed
        self.trained = strategy.list_trained(layout, round_number)
        self.private = strategy.list_private(layout)
        self.shared = self.trained - self.private
        """Names of the tensors in updates."""
        self._chains = codec.quantizer.chains
        self._packages: dict[tuple[AdapterShape | None, int, bool, tuple[int, ...]], Package] = {}
        self._bases: dict[int, bytes] = {}
        self._made: dict[AdapterShape | None, tuple[bytes, Arrival, State | None]] = {}

    @property
    def made(self) -> dict[AdapterShape | None, bytes]:
        """The payloads from the start to the round's new versions, by form."""
        return {form: payload for form, (payload, _, _) in self._made.items()} if self._chains else {}

    def create_package(self, form: AdapterShape | None, held: int, newcomer: bool, client: int = 0) -> Package:
        """Return the adapter for a client.

        Args:
            form: rank and alpha of the client's factors; None: the whole adapter.
            held: the version that the client holds; 0: none that helps.
            newcomer: whether the client also needs the tensors that stay with clients.
            client: id of the client.
        """
        if not (self._chains and self._versions.get(form, held)):
            held = 0
        ranks, whole = self._get_ranks(form, client), get_held_form(self._strategy, self._layout, form)
        key = whole, held, newcomer and bool(self.private), () if whole != form else ranks
        if key not in self._packages:
            self._packages[key] = self._create_package(*key)
        return replace(self._packages[key], ranks=ranks)

    def _get_ranks(self, form: AdapterShape | None, client: int) -> tuple[int, ...]:
        return choose_ranks(self._strategy, self._layout, form, self._seed, self._round, client)

    def get_digests(self, form: AdapterShape | None) -> dict[str, str]:
        """Return the digests of the states in a `form`, by `format_state_name`.

        If clients can't compare a state, the reason replaces the digest.
        """
        why = explain_uncompared(self._strategy, self._layout, self._codec, form, self._seed, self._round)
        return {
            format_state_name(form, newcomer): why or self._compute_digest(form, newcomer)
            for newcomer in (False, True)[: 2 if self.private else 1]
        }

    def _compute_digest(self, form: AdapterShape | None, newcomer: bool) -> str:
        if self._codec.lossless:
            state = self.create_package(form, 0, newcomer).state
        else:
            state = self._encode_whole(form)[1].comparable_state
        return compute_digest({name: tensor for name, tensor in state.items() if newcomer or name not in self.private})

    def _create_package(
        self, form: AdapterShape | None, held: int, everything: bool, ranks: tuple[int, ...]
    ) -> Package:
        shapes = self._layout.replace_form(form).shapes
        names = [name for name in shapes if everything or name not in self.private]
        if self._codec.lossless:
            state = move_ranks_to_front(self._state, self._layout, ranks)
            sent = self._strategy.dispatch(state, self._layout, form, self._round)
            payload = self._codec.encode({name: sent[name] for name in names}, shapes=shapes)
            return Package(payload, decode(payload, shapes), None, ranks)
        payload, whole, weights = self._encode_whole(form)
        state = {name: whole.state[name] for name in names}
        part = {name: whole.moved[name] for name in names}
        codec = fix_step_size(self._codec, payload, shapes) if self._chains else self._codec
        if len(names) < len(shapes):
            payload = codec.encode(part, seed=self._round, weights=weights, shapes=shapes)
            state |= decode_arrival(payload, codec, shapes, self._start_for(form), {}).state
        if held:
            moved = decode(self._versions.get(form, held) or b"", shapes)
            shorter = codec.encode(part, weights=weights, shapes=shapes, reference=(held, moved))
            if len(shorter) < len(payload):
                return Package(shorter, state, held)
        return Package(payload, state, 0)

    def _encode_whole(self, form: AdapterShape | None) -> tuple[bytes, Arrival, State | None]:
        """Return the payload from the start to the round's state, the decoded state, and the encoding's weights."""
        if form not in self._made:
            start, shapes = self._start_for(form), self._layout.replace_form(form).shapes
            moved = subtract_states(self._strategy.dispatch(self._state, self._layout, form, self._round), start)
            weights = compute_balanced_weights(moved) if self._chains else None
            payload = self._codec.encode(moved, seed=self._round, weights=weights, shapes=shapes)
            self._made[form] = payload, decode_arrival(payload, self._codec, shapes, start, {}), weights
        return self._made[form]

    def _start_for(self, form: AdapterShape | None) -> State:
        return create_start(self._strategy, self._start, self._layout, form)

    def base(self, last: int) -> bytes:
        """Return the payload that updates the base of a client whose last round was `last` (0: it never took part)."""
        held = max(0, last - 1)  # a round uses the base that the previous round left
        if held not in self._bases:
            self._bases[held] = self._residual.encode_payload(held, self._layout.pairs, self._lossless)
        return self._bases[held]


LONGEST: Final = 256
"""The most versions of one form that are kept."""


Form = AdapterShape | None


@dataclass(frozen=True)
class Versions:
    """The payloads from the start to each version, by form and round."""

    payloads: dict[Form, dict[int, bytes]] = field(default_factory=dict)

    def get(self, form: Form, version: int) -> bytes | None:
        """Return the payload that leads to a version; None: it is not kept."""
        return self.payloads.get(form, {}).get(version)

    def after(self, round_number: int, made: Mapping[Form, bytes], held: Iterable[int]) -> Versions:
        """Return the versions that somebody holds, with those of a new round.

        Args:
            round_number: the new round.
            made: its payloads, by form.
            held: versions that clients hold.
        """
        wanted = {round_number, *held}
        payloads = {}
        for form in [*self.payloads, *(form for form in made if form not in self.payloads)]:
            chain = self.payloads.get(form, {}) | ({round_number: made[form]} if form in made else {})
            kept = sorted(version for version in chain if version in wanted)[-LONGEST:]
            payloads[form] = {version: chain[version] for version in kept}
        return Versions(payloads)

    def to_tensors(self) -> State:
        """Return the versions as tensors by name, for a checkpoint."""
        return {
            f"{form.rank if form else 0}/{form.alpha if form else 0.0!r}/{version}": torch.from_numpy(
                np.frombuffer(payload, np.uint8).copy()
            )
            for form, chain in self.payloads.items()
            for version, payload in chain.items()
        }

    @classmethod
    def from_tensors(cls, state: State) -> Versions:
        """Build versions from the result of `to_tensors`."""
        made = cls()
        for name, tensor in state.items():
            rank, alpha, version = name.split("/")
            form = AdapterShape(int(rank), float(alpha)) if int(rank) else None
            made.payloads.setdefault(form, {})[int(version)] = tensor.numpy().tobytes()
        return made

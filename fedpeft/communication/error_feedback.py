"""Error feedback: what a lossy codec drops is not lost, but sent later.

    ef14   c = C(e + x);   e <- e + x - c               the receiver takes c
    ef21   c = C(x - g);   g <- g + c                   the receiver keeps the same g, and takes it

EF14 (Seide et al. 2014; Stich et al., arXiv 1809.07599) keeps one state per client as memory. The updates received up
to round T sum to all inputs less the last memory (the telescoping identity). EF21 (arXiv 2106.05203) keeps the
receiver's estimate of the client's update, which the receiver must keep too; it suits full participation.

Memories are plain states. Store them with the client's other state, and commit them only when the server has
acknowledged the payload. Under differential privacy the input must be noised already, or the server must clip after
decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedpeft.communication.codec import Codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.payload import Shape
from fedpeft.errors import ConfigError
from fedpeft.parts import check_settings, setting
from fedpeft.parts.families import MEMORIES
from fedpeft.parts.spec import Spec
from fedpeft.peft.adapter import State

Kind = Literal["none", "ef14", "ef21"]


@dataclass(frozen=True)
class _Settings:
    """The settings of a memory in a codec's text."""

    keep: float = setting(
        1.0,
        "share of the memory that is kept; below 1 it forgets old errors of clients that are seldom drawn, and the "
        "telescoping identity no longer holds",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class ErrorFeedback:
    """A codec with memory.

    Attributes:
        codec: any codec without gain; a lossless one leaves the memory at zero (EF14).
        kind: ef14, ef21, or none: the codec alone.
        keep: share of the memory that is kept, 0 to 1; below 1 only with EF14.
    """

    codec: Codec
    kind: Kind = "ef14"
    keep: float = 1.0

    def __post_init__(self) -> None:
        """Check the type of memory, its settings, and that the codec has no gain beside it."""
        if self.kind not in ("none", *MEMORIES):
            raise ConfigError(f"FP1061 error feedback must be one of {', '.join(MEMORIES)}, got {self.kind!r}")
        if not 0 <= self.keep <= 1:
            raise ConfigError(f"FP1062 error feedback's keep must be 0 to 1, got {self.keep}")
        if self.codec.gain != "none" and self.kind != "none":
            raise ConfigError(
                f"FP1063 {self.kind} sends later what {self.codec} drops, and the codec's gain corrects it at once; "
                "together they overshoot, so leave one of them out"
            )
        if self.keep != 1 and self.kind != "ef14":
            raise ConfigError(
                f"FP1064 {self.kind} keeps its whole memory, so keep={self.keep:g} can't be set; use ef14"
            )

    @classmethod
    def from_spec(cls, spec: Spec, codec: Codec) -> ErrorFeedback:
        """Build error feedback from a text such as `ef14(keep=0.5)`.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        kind: Kind = "ef21" if spec.name == "ef21" else "ef14"
        return cls(codec, kind, **check_settings(f"error feedback {kind}", _Settings, spec.settings))

    def __str__(self) -> str:
        """Return the text form, without the codec."""
        return self.kind if self.keep == 1 else f"{self.kind}(keep={self.keep!r})"

    def encode(
        self,
        delta: State,
        memory: State | None,
        *,
        seed: int = 0,
        weights: State | None = None,
        shapes: Mapping[str, Shape] | None = None,
        turn: int = 0,
    ) -> tuple[bytes, State]:
        """Return the payload for `delta`, and the memory to keep once it is acknowledged.

        Args:
            delta: the update; it may contain only some of the adapter's tensors. The memory of the others does not
                change.
            memory: the memory that the last call returned for this client; None or {} at first.
            seed: see `Codec.encode`.
            weights: see `Codec.encode`.
            shapes: see `Codec.encode`.
            turn: see `Codec.encode`.
        """
        if self.kind == "none":
            return self.codec.encode(delta, seed=seed, weights=weights, shapes=shapes, turn=turn), {}
        own = {name: tuple(tensor.shape) for name, tensor in delta.items()}
        held = _select_fitting(memory or {}, own)
        sign = self.keep if self.kind == "ef14" else -1.0
        target = {
            name: tensor + sign * held[name].to(tensor) if name in held else tensor for name, tensor in delta.items()
        }
        payload = self.codec.encode(target, seed=seed, weights=weights, shapes=shapes, turn=turn)
        received = decode(payload, own if shapes is None else shapes)
        if self.kind == "ef14":
            return payload, {**held, **{name: target[name] - received[name].to(target[name]) for name in own}}
        return payload, {**held, **_sum(received, held)}

    def receive(self, payload: bytes, shapes: Mapping[str, Shape], memory: State | None = None) -> tuple[State, State]:
        """Return the update in a payload, and the receiver's memory of that client (EF21 only; EF14 needs none).

        Raises:
            PayloadError: see `decode`.
        """
        received = decode(payload, shapes, agreed=self.codec.steps)
        if self.kind != "ef21":
            return received, {}
        held = _select_fitting(memory or {}, shapes)
        update = _sum(received, held)
        return update, {**held, **update}


def create_no_feedback(codec: Codec) -> ErrorFeedback:
    """Return the codec without a memory."""
    return ErrorFeedback(codec, "none")


def _select_fitting(memory: State, shapes: Mapping[str, Shape]) -> State:
    """Return the memory without tensors whose shape has changed, as it does if a client's rank does."""
    return {n: t for n, t in memory.items() if n not in shapes or tuple(t.shape) == tuple(shapes[n])}


def _sum(received: State, held: State) -> State:
    return {name: tensor + held[name].to(tensor) if name in held else tensor for name, tensor in received.items()}

"""The base classes of codec steps: values to values, values to symbols, symbols to bytes, bytes to fewer bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from fedpeft.communication.payload import MAX_STEPS, Array, Reader, Shape, compute_checksum
from fedpeft.communication.symbols import Expected, Symbols
from fedpeft.communication.vectors import count_segment_entries
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.parts import format_part, name_of
from fedpeft.parts.families import codecs


@dataclass(frozen=True)
class Signal:
    """Values on their way through the tensor steps.

    Attributes:
        values: (n,), float32 or float64: all segments, one after the other.
        shapes: shapes of the segments, which are the tensors themselves, or what the transforms so far made of them.
        weights: (n,), at least 0: how much an error of one entry matters (its sensitivity); None: all alike.
    """

    values: Array
    shapes: tuple[Shape, ...]
    weights: Array | None = None

    @property
    def sizes(self) -> Array:
        """The number of entries of each segment."""
        return count_segment_entries(self.shapes)


@dataclass(frozen=True)
class Encoded:
    """The result of a tensor step.

    Attributes:
        signal: values for the next step; None after a quantizer.
        parameters: parameters to send.
        symbols: symbols to send.
    """

    signal: Signal | None
    parameters: bytes = b""
    symbols: tuple[Symbols, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The way in which a receiver will undo a tensor step.

    Attributes:
        shapes: segments that the step leaves for the next one; empty after a quantizer.
        symbols: symbols that the step needs from the packer.
        undo: (values after the step, the symbols) -> values before the step.
    """

    shapes: tuple[Shape, ...]
    symbols: tuple[Expected, ...]
    undo: Callable[[Array, Sequence[Array]], Array]


@dataclass(frozen=True)
class Context:
    """The facts that both ends have beside the payload.

    Attributes:
        seed: below 2^64, from the header.
        position: position of the step in the codec; each step draws from its own stream.
        dtype: float32, or float64 if any tensor sent is fp64.
        parameters: entries of the whole state, before any step.
        spent: for the encoder: bytes of the header and of earlier steps.
        reference: for the encoder: version and values of the state that a `delta` step subtracts.
        references: for the decoder: returns the values of a version, for the tensors sent.
        turn: for the encoder: increases from round to round, and from client to client.
        agreed: for the decoder: the steps of the codec that the sender was told to use; None: it may use any.
    """

    seed: int
    position: int
    dtype: np.dtype[Any]
    parameters: int = 0
    spent: int = 0
    reference: tuple[int, Array] | None = None
    references: Callable[[int], Array | None] = lambda version: None
    turn: int = 0
    agreed: Sequence[Step] | None = None

    def read_reference(self, version: int, parameters: Reader, count: int) -> Array:
        """Return the decoder's values (count,) of a state that both ends hold, after a check of their checksum.

        Raises:
            PayloadError: the decoder does not hold the state, or holds another one.
        """
        checksum = parameters.read_integer(4, "reference checksum")
        values = self.references(version)
        if values is None:
            raise PayloadError(f"FP6076 the payload builds on version {version} of the state, which is not held here")
        if len(values) != count or compute_checksum(values) != checksum:
            raise PayloadError(
                f"FP6077 the payload builds on a version {version} of the state that differs from the one held here"
            )
        return values

    def draw_uniform(self, count: int) -> Array:
        """Draw `count` numbers in (0, 1), symmetric about 1/2, on a grid of 2^-24; a seed fixes them forever."""
        bits = self._draw_bits(-(-count // 2)).view("<u4")[:count] >> np.uint32(9)
        return ((2 * bits + 1) * np.float32(2.0**-24)).astype(self.dtype, copy=False)

    def draw_signs(self, count: int) -> Array:
        """Draw `count` random signs, -1 or 1."""
        bits = np.unpackbits(self._draw_bits(-(-count // 64)).view(np.uint8), count=count, bitorder="little")
        return (1 - 2 * bits.view(np.int8)).astype(self.dtype)

    def _draw_bits(self, words: int) -> Array:
        generator = np.random.Philox(key=np.array([self.seed, self.position], np.uint64))
        return generator.random_raw(words).astype("<u8", copy=False)


MAX_VERSION: Final = (1 << 62) - 1
"""The largest version of a state that both ends hold."""


class Step(ABC):
    """A step of a codec: a part. Subclasses are frozen dataclasses; their fields are the user's settings."""

    place: ClassVar[int]
    """The place in the order of steps."""
    lossless: ClassVar[bool] = True
    """Whether the step can be undone exactly for fp32 values; a class that it depends on makes it a property."""
    draws: ClassVar[bool] = False
    """Whether the step needs the seed."""
    needs_reference: ClassVar[bool] = False
    """Whether the step needs a state that both ends hold, so that a client without one can't read its payloads."""
    takes_turns: ClassVar[bool] = False
    """Whether the sent part depends on the turn, which suits updates of many clients, not one state."""

    def __str__(self) -> str:
        """Return the step as text."""
        return format_part(self)


class TensorStep(Step):
    """A step over values."""

    @abstractmethod
    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Turn values into parameters, symbols and, for a transform, values for the next step."""

    @classmethod
    @abstractmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Check a peer's parameters, and return how to undo the step; nothing is allocated for unchecked numbers.

        Raises:
            PayloadError: a parameter is out of range.
        """


class Transform(TensorStep):
    """A step from values to values."""

    place = 0
    proportional: ClassVar[bool] = True
    """Whether the decoded values are in proportion to the values that the next step receives."""


class Quantizer(TensorStep):
    """A step from values to symbols."""

    place = 1
    chains: ClassVar[bool] = False
    """Whether states lie on a grid of its steps, so that each can be reached exactly from any other."""

    def as_in(self, parameters: Reader) -> Quantizer:
        """Return the quantizer on the grid of a payload that it has made, given the payload's parameters.

        Only quantizers with `chains` have such a grid.
        """
        return self


class Packer(Step):
    """A step from symbols to bytes."""

    place = 2

    @abstractmethod
    def pack(self, symbols: Sequence[Symbols]) -> bytes:
        """Pack all symbols, into at most `bound` bytes."""

    @classmethod
    @abstractmethod
    def bound(cls, expected: Sequence[Expected]) -> int:
        """Return the most bytes that `pack` makes of such symbols."""

    @classmethod
    @abstractmethod
    def unpack(cls, data: memoryview, expected: Sequence[Expected]) -> list[Array]:
        """Unpack the symbols, and check that they lie below their alphabets.

        Raises:
            PayloadError: the bytes are too short, too long, or not made by `pack`.
        """


class ByteStep(Step):
    """A step from bytes to fewer bytes."""

    place = 3

    @abstractmethod
    def encode(self, data: bytes) -> bytes:
        """Shrink the bytes."""

    @classmethod
    @abstractmethod
    def decode(cls, data: memoryview, bound: int) -> memoryview:
        """Restore the bytes.

        Raises:
            PayloadError: the bytes are not valid, or would become more than `bound`.
        """

    @classmethod
    def limit(cls, bound: int) -> int:
        """Return the most bytes that `encode` makes of `bound` bytes."""
        return bound + bound // 64 + 512


def check_order(steps: Sequence[type[Step]]) -> None:
    """Raise ConfigError unless these are transforms, one quantizer, one packer, byte steps, in this order."""
    places = [step.place for step in steps]
    names = " | ".join(map(name_of, steps))
    if places != sorted(places) or places.count(Quantizer.place) != 1 or places.count(Packer.place) != 1:
        raise ConfigError(
            f"FP1065 {names}: a codec is transforms, then one quantizer, then one packer, then byte steps; "
            + "; ".join(f"{noun}: {', '.join(_list_steps(kind))}" for noun, kind in _KINDS)
        )
    if len(steps) > MAX_STEPS:
        raise ConfigError(f"FP1066 a codec has at most {MAX_STEPS} steps, but this one has {len(steps)}")


_KINDS: Final[tuple[tuple[str, type[Step]], ...]] = (
    ("transforms", Transform),
    ("quantizers", Quantizer),
    ("packers", Packer),
    ("byte steps", ByteStep),
)


def _list_steps(kind: type[Step]) -> list[str]:
    return [name for name in codecs.names if issubclass(codecs.part(name), kind)]


def get_step_name(step: Step) -> str:
    """Return the step's name on the wire and in texts."""
    return name_of(type(step))

"""What a codec is: `tensor steps -> one packer -> byte steps`, written as text.

    quantize(bits=4) | rans | zstd

A *transform* turns values into fewer or better behaved values (topk, lowrank, rotate, delta). One *quantizer* turns
values into symbols, integers below a small alphabet (cast, quantize, nf4, sign, adaptive). The *packer* turns symbols
into bytes (pack, rans), *byte steps* shrink bytes (zstd). All tensors of a state go through a step together, as one
vector. A missing quantizer is `cast` (fp32, lossless), a missing packer is `pack`.

Decoding needs no configuration: the payload's header names the steps and their parameters. It runs in three passes,
and nothing in the payload can make it allocate more than the receiver's own shapes ask for:

1. plan, forwards: from the expected shapes, each step says which symbols it needs and what shapes it leaves;
2. unpack: byte steps and packer are given the exact number of symbols, hence a bound on their bytes;
3. undo, backwards: symbols to values, values to tensors; the result must be finite.

Memory: whatever a payload says, decoding holds at most 32 times the adapter's size in fp32, plus 1 MiB (the worst case
is a full-rank `lowrank` of square fp64 matrices); for fp32 LoRA factors at most 16 times, 4 to 10 for the presets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np
import torch

from fedpeft.communication.payload import (
    DTYPES,
    MAX_STEPS,
    Array,
    Expected,
    Header,
    Reader,
    Shape,
    Symbols,
    layout_digest,
    packed_bound,
    read_payload,
    size,
    total,
    write_payload,
)
from fedpeft.errors import ConfigError, FedpeftError, PayloadError
from fedpeft.parts import Family, Spec, parse_spec, part_text, split_outside_parentheses
from fedpeft.peft.adapter import State

PRESETS: Final[Mapping[str, str]] = {
    "fp64": "cast(dtype=fp64)",
    "fp32": "cast(dtype=fp32)",
    "bf16": "cast(dtype=bf16) | rans",
    "fp16": "cast(dtype=fp16) | rans",
    "int8": "quantize(bits=8) | rans",
    "int4": "quantize(bits=4) | rans",
    "unbiased": "quantize(step=0.99, rounding=dither) | rans",
    "medium": "adaptive(bits=2.0, gain=1.1) | rans",
    "small": "adaptive(bits=0.99, gain=1.7) | rans",
    "drive": "rotate | sign(scale=drive)",
    "tiny": "adaptive(bits=0.312, gain=3.0) | rans",
}
"""Codecs with a name, from exact to smallest. Against fp32: bf16 3x, int8 4x, int4 8x, unbiased 15x, medium 16x, small
32x, drive 31x, tiny 100x. Those with a gain are for the mean of many updates, and one update arrives longer than it was
sent: where a round has only a few clients put a memory in front (`ef14 | small`), and where the server clips or judges
single updates (`user_dp`, robust rules, `fedbuff` with a small buffer) take `int4` or `unbiased`."""
HEADER_SIZE: Final = 64
"""Bytes that a header with four steps takes, about: what a step that works to a budget sets aside."""


@dataclass(frozen=True)
class Signal:
    """Values on their way through the tensor steps.

    Attributes:
        values: (n,), float32 or float64: all segments, one after the other.
        shapes: of the segments; the tensors themselves, or what the transforms so far made of them.
        weights: (n,), at least 0: how much an error of one entry matters (its sensitivity); None: all alike.
    """

    values: Array
    shapes: tuple[Shape, ...]
    weights: Array | None = None

    @property
    def sizes(self) -> Array:
        """Entries of each segment."""
        return segment_sizes(self.shapes)


@dataclass(frozen=True)
class Encoded:
    """What a tensor step made: `signal` for the next step (None after a quantizer), parameters and symbols to send."""

    signal: Signal | None
    parameters: bytes = b""
    symbols: tuple[Symbols, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How a receiver will undo a tensor step.

    Attributes:
        shapes: segments that the step leaves for the next one; empty after a quantizer.
        symbols: what the step needs from the packer.
        undo: (values after the step, the symbols) -> values before the step.
    """

    shapes: tuple[Shape, ...]
    symbols: tuple[Expected, ...]
    undo: Callable[[Array, Sequence[Array]], Array]


@dataclass(frozen=True)
class Context:
    """What both ends know beside the payload.

    Attributes:
        seed: below 2^64, from the header.
        position: of the step in the codec; each step draws from its own stream.
        dtype: float32, or float64 if any tensor sent is fp64.
        parameters: entries of the whole state, before any step.
        spent: of the encoder: bytes that the header and the steps before take.
        reference: of the encoder: version and values of the state that a `delta` step subtracts.
        references: of the decoder: version -> values, for the tensors sent.
    """

    seed: int
    position: int
    dtype: np.dtype[Any]
    parameters: int = 0
    spent: int = 0
    reference: tuple[int, Array] | None = None
    references: Callable[[int], Array | None] = lambda version: None

    def uniform(self, count: int) -> Array:
        """`count` numbers in (0, 1), symmetric about 1/2, on a grid of 2^-24; the same for ever for the same seed."""
        bits = self._bits(-(-count // 2)).view("<u4")[:count] >> np.uint32(9)
        return ((2 * bits + 1) * np.float32(2.0**-24)).astype(self.dtype, copy=False)

    def signs(self, count: int) -> Array:
        """`count` random signs, -1 or 1."""
        bits = np.unpackbits(self._bits(-(-count // 64)).view(np.uint8), count=count, bitorder="little")
        return 1 - 2 * bits.astype(self.dtype)

    def _bits(self, words: int) -> Array:
        generator = np.random.Philox(key=np.array([self.seed, self.position], np.uint64))
        return generator.random_raw(words).astype("<u8", copy=False)


class Step(ABC):
    """One step of a codec: a part. Subclasses are frozen dataclasses; their fields are the user's settings."""

    place: ClassVar[int]
    """Place in the order of steps."""
    lossless: ClassVar[bool] = True
    """Whether the step can be undone exactly for fp32 values; a class that it depends on makes it a property."""
    draws: ClassVar[bool] = False
    """Whether the step needs the seed."""

    def __str__(self) -> str:
        return part_text(self)


class TensorStep(Step):
    """A step over values."""

    @abstractmethod
    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Values to parameters, symbols and, for a transform, the values that are left."""

    @classmethod
    @abstractmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Check what a peer sent and say how to undo it; allocates nothing that depends on unchecked numbers.

        Raises:
            PayloadError: a parameter is out of range.
        """


class Transform(TensorStep):
    """Values to values."""

    place = 0
    proportional: ClassVar[bool] = True
    """Whether what arrives is in proportion to the values that the next step is given."""


class Quantizer(TensorStep):
    """Values to symbols."""

    place = 1


class Packer(Step):
    """Symbols to bytes."""

    place = 2

    @abstractmethod
    def pack(self, symbols: Sequence[Symbols]) -> bytes:
        """All symbols as bytes, at most `bound` of them."""

    @classmethod
    @abstractmethod
    def bound(cls, expected: Sequence[Expected]) -> int:
        """The most bytes that `pack` makes of such symbols."""

    @classmethod
    @abstractmethod
    def unpack(cls, data: memoryview, expected: Sequence[Expected]) -> list[Array]:
        """The symbols, checked to lie below their alphabets.

        Raises:
            PayloadError: too short, too long, or not made by `pack`.
        """


class ByteStep(Step):
    """Bytes to fewer bytes."""

    place = 3

    @abstractmethod
    def encode(self, data: bytes) -> bytes:
        """The bytes, shrunk."""

    @classmethod
    @abstractmethod
    def decode(cls, data: memoryview, bound: int) -> memoryview:
        """The bytes as they were.

        Raises:
            PayloadError: they are not valid, or would be more than `bound`.
        """

    @classmethod
    def limit(cls, bound: int) -> int:
        """The most bytes that `encode` makes of `bound` bytes."""
        return bound + bound // 64 + 512


codecs: Family[Step] = Family("fedpeft.communication.codecs", "codec step")
"""All steps, by file name."""


@dataclass(frozen=True)
class Codec:
    """A checked pipeline. Its text form round-trips: `parse_codec(str(codec)) == codec`."""

    tensor_steps: tuple[TensorStep, ...]
    packer: Packer
    byte_steps: tuple[ByteStep, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in the order of encoding."""
        return (*self.tensor_steps, self.packer, *self.byte_steps)

    @cached_property
    def lossless(self) -> bool:
        """Whether a state of fp32, bf16 or fp16 tensors comes back bit for bit."""
        return all(step.lossless for step in self.steps)

    def __str__(self) -> str:
        return " | ".join(map(str, self.steps))

    @property
    def bits(self) -> float:
        """Bits a parameter that the quantizer works to; 0 where it has no precision to set."""
        return float(getattr(self.tensor_steps[-1], "bits", 0))

    @property
    def gain(self) -> float:
        """What the quantizer multiplies by what arrives."""
        return float(getattr(self.tensor_steps[-1], "gain", 1))

    def without_gain(self) -> Codec:
        """The same codec with what arrives as near to what was sent as can be."""
        if self.gain == 1:
            return self
        changed = replace(self.tensor_steps[-1], gain=1.0)  # type: ignore[type-var]
        return replace(self, tensor_steps=(*self.tensor_steps[:-1], changed))

    def with_bits(self, bits: float) -> Codec:
        """The same codec at another precision, for precision that changes over time or from client to client.

        Args:
            bits: a parameter, where the quantizer works to a budget (adaptive, widths); whole bits for `quantize`.

        Raises:
            ConfigError: the codec's quantizer has no precision to set.
        """
        quantizer = self.tensor_steps[-1]
        found = {f.name: f for f in fields(quantizer)}.get("bits")  # type: ignore[arg-type]
        if found is None or getattr(quantizer, "step", None) is not None:
            raise ConfigError(f"the precision of {self} can't be set; use adaptive, widths or quantize(bits=...)")
        limits = found.metadata["bounds"]
        bits = min(limits.high, max(limits.low if limits.low is not None else 0.05, bits))
        value = round(bits) if isinstance(getattr(quantizer, "bits"), int) else bits  # noqa: B009
        changed = replace(quantizer, **{"bits": value})  # type: ignore[type-var]
        return replace(self, tensor_steps=(*self.tensor_steps[:-1], changed))

    def encode(
        self,
        state: State,
        *,
        seed: int = 0,
        weights: State | None = None,
        shapes: Mapping[str, Shape] | None = None,
        reference: tuple[int, State] | None = None,
    ) -> bytes:
        """The state as one payload; its length is what a transfer costs.

        Args:
            state: tensors by name (fp32, bf16, fp16 or fp64), finite.
            seed: of dither, rotation and stochastic rounding; taken modulo 2^64. Use another one for each client and
                round, or the errors of a cohort don't average out.
            weights: sensitivity by name, same shapes, at least 0: an error e in an entry with sensitivity s counts as
                s * e (see `fedpeft.communication.bit_allocation.sensitivity`). Names left out count as 1.
            shapes: of the whole adapter, when `state` may hold only some of its tensors; default: those of `state`.
            reference: version and state that a `delta` step subtracts; both ends hold it.

        Raises:
            PayloadError: a tensor is not finite, of another dtype, or not in `shapes`.
            ConfigError: a `delta` step has no reference.
        """
        own = {name: tuple(state[name].shape) for name in sorted(state)}
        sent = _subset(own, own if shapes is None else shapes)
        seed %= 1 << 64
        symbols, parameters = self.symbols(state, seed=seed, weights=weights, reference=reference)
        body = self.packer.pack(symbols)
        for byte_step in self.byte_steps:
            body = byte_step.encode(body)
        parameters += [b""] * (1 + len(self.byte_steps))
        header = Header(
            layout_digest(own if shapes is None else shapes),
            sent,
            tuple(state[name].dtype for name in own),
            seed if any(step.draws for step in self.steps) else None,
            tuple((step_name(step), p) for step, p in zip(self.steps, parameters, strict=True)),
        )
        return write_payload(header, body)

    def symbols(
        self,
        state: State,
        *,
        seed: int = 0,
        weights: State | None = None,
        reference: tuple[int, State] | None = None,
    ) -> tuple[list[Symbols], list[bytes]]:
        """What the tensor steps make of a state, before it is packed: all symbols, and each step's parameters.

        See `encode` for arguments and errors.
        """
        own = {name: tuple(state[name].shape) for name in sorted(state)}
        for name in own:
            if state[name].dtype not in DTYPES:
                raise PayloadError(f"{name} is {state[name].dtype}; a payload holds fp32, bf16, fp16 or fp64 tensors")
        dtype = _working([state[name].dtype for name in own])
        flat = _flat(state, list(own), dtype)
        _check_finite(flat, list(own), own)
        signal = Signal(flat, tuple(own.values()), None if weights is None else _flat_weights(weights, own, dtype))
        base = None if reference is None else (reference[0], _reference(reference[1], own, dtype))
        parameters: list[bytes] = []
        symbols: list[Symbols] = []
        with np.errstate(all="ignore"):  # what overflows is not finite, and the receiver refuses it
            for position, step in enumerate(self.tensor_steps):
                spent = HEADER_SIZE + sum(map(len, parameters)) + packed_bound([s.expected for s in symbols])
                made = step.encode(signal, Context(seed, position, dtype, len(flat), spent, base))
                parameters.append(made.parameters)
                symbols += made.symbols
                signal = made.signal or signal
        return symbols, parameters


def parse_codec(text: str) -> Codec:
    """The codec that `text` describes: a preset's name, or steps separated by `|`.

    Raises:
        ConfigError: unknown step or setting, value out of range, or steps in the wrong order.
    """
    words = split_outside_parentheses(PRESETS.get(text.strip(), text), "|")
    if not all(words):
        raise ConfigError(f"the codec {text!r} has an empty step; write step | step | ...")
    specs = [parse_spec(word) for word in words]
    if len(specs) == 1 and not specs[0].settings and specs[0].name not in codecs.names:
        raise ConfigError(
            f"unknown codec {text.strip()!r}; presets: {', '.join(PRESETS)}; steps: {', '.join(codecs.names)}"
        )
    return make_codec([codecs.build(spec) for spec in specs])


def make_codec(steps: Sequence[Step]) -> Codec:
    """A codec of these steps, completed by `cast` and `pack` where quantizer or packer are missing.

    Raises:
        ConfigError: the steps are in an order that can't work, or a gain would act on factors of a product.
    """
    completed = list(steps)
    if not any(isinstance(s, Quantizer) for s in completed):
        completed.insert(sum(isinstance(s, Transform) for s in completed), codecs.build(Spec("cast", {})))
    if not any(isinstance(s, Packer) for s in completed):
        completed.insert(sum(isinstance(s, TensorStep) for s in completed), codecs.build(Spec("pack", {})))
    check_order([type(s) for s in completed])
    codec = Codec(
        tuple(s for s in completed if isinstance(s, TensorStep)),
        next(s for s in completed if isinstance(s, Packer)),
        tuple(s for s in completed if isinstance(s, ByteStep)),
    )
    if codec.gain != 1 and not all(s.proportional for s in completed if isinstance(s, Transform)):
        raise ConfigError(f"{codec}: a gain would act on both factors of a product; leave out gain or the step before")
    return codec


def check_order(steps: Sequence[type[Step]]) -> None:
    """Raise ConfigError unless these are transforms, one quantizer, one packer, byte steps, in this order."""
    places = [step.place for step in steps]
    names = " | ".join(step.__module__.rpartition(".")[2] for step in steps)
    if places != sorted(places) or places.count(Quantizer.place) != 1 or places.count(Packer.place) != 1:
        raise ConfigError(
            f"{names}: a codec is transforms, then one quantizer, then one packer, then byte steps; "
            + "; ".join(f"{noun}: {', '.join(_of_kind(kind))}" for noun, kind in _KINDS)
        )
    if len(steps) > MAX_STEPS:
        raise ConfigError(f"a codec has at most {MAX_STEPS} steps, this one has {len(steps)}")


_KINDS: Final[tuple[tuple[str, type[Step]], ...]] = (
    ("transforms", Transform),
    ("quantizers", Quantizer),
    ("packers", Packer),
    ("byte steps", ByteStep),
)


def _of_kind(kind: type[Step]) -> list[str]:
    return [name for name in codecs.names if issubclass(codecs.part(name), kind)]


def step_name(step: Step) -> str:
    """The step's name on the wire and in texts: its file's name."""
    return type(step).__module__.rpartition(".")[2]


def decode(payload: bytes, shapes: Mapping[str, Shape], *, references: Mapping[int, State] | None = None) -> State:
    """The state in a payload, for an adapter of these `shapes`; tensors have the dtypes they were sent from.

    Args:
        payload: bytes from a peer, possibly hostile.
        shapes: the tensors that the payload may hold; all of them, unless it declares a subset.
        references: states that both ends hold, by version, for payloads made with a `delta` step.

    Raises:
        PayloadError: the payload is not what `Codec.encode` makes for such an adapter.
    """
    try:
        return _decode(payload, shapes, references or {})
    except FedpeftError:
        raise
    except (
        ArithmeticError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # a check that is missing is still no crash
        raise PayloadError(f"the payload is not valid ({type(error).__name__}: {error})") from error


def _decode(payload: bytes, shapes: Mapping[str, Shape], references: Mapping[int, State]) -> State:
    header, data = read_payload(payload, shapes)
    ordered = sorted(shapes)
    names = ordered if header.sent is None else [n for n, sent in zip(ordered, header.sent, strict=True) if sent]
    dtype = _working(header.dtypes)

    def reference(version: int) -> Array | None:
        state = references.get(version, {})
        return _flat(state, names, dtype) if all(name in state for name in names) else None

    classes = _step_classes(header)
    segments = tuple(tuple(shapes[name]) for name in names)
    parameters = total(segments)
    plans: list[Plan] = []
    for position, (step, (name, settings)) in enumerate(zip(classes, header.steps, strict=True)):
        reader = Reader(settings, f"the payload's step {name}")
        if issubclass(step, TensorStep):
            context = Context(header.seed or 0, position, dtype, parameters, references=reference)
            plans.append(step.plan(reader, segments, context))
            segments = plans[-1].shapes
        reader.end()
    unpacked = _unpack(data, classes, [e for plan in plans for e in plan.symbols])
    values = np.zeros(0, dtype)
    with np.errstate(all="ignore"):
        for plan in reversed(plans):
            first = len(unpacked) - len(plan.symbols)
            values = plan.undo(values, unpacked[first:])
            del unpacked[first:]
    own = {name: tuple(shapes[name]) for name in names}
    _check_finite(values, names, own)
    state = _tensors(values, own, header.dtypes)
    return {name: state[name] for name in shapes if name in state}


def _step_classes(header: Header) -> list[type[Step]]:
    try:
        classes = [codecs.part(name) for name, _ in header.steps]
        check_order(classes)
    except ConfigError as error:
        raise PayloadError(f"the payload can't be decoded: {error}") from None
    if header.seed is None and any(step.draws is True for step in classes):
        raise PayloadError("the payload has a step that draws random numbers, but no seed")
    return classes


def _unpack(data: memoryview, classes: Sequence[type[Step]], expected: Sequence[Expected]) -> list[Array]:
    packer = next(step for step in classes if issubclass(step, Packer))
    bounds = [packer.bound(expected)]
    byte_steps = [step for step in classes if issubclass(step, ByteStep)]
    for step in byte_steps:
        bounds.append(step.limit(bounds[-1]))
    if len(data) > bounds[-1]:
        raise PayloadError(f"the payload's body has {len(data)} bytes; such an adapter takes at most {bounds[-1]}")
    for step, bound in zip(reversed(byte_steps), reversed(bounds[:-1]), strict=True):
        data = step.decode(data, bound)
    return packer.unpack(data, expected)


def _subset(own: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> tuple[bool, ...] | None:
    for name, shape in own.items():
        if name not in shapes:
            raise PayloadError(f"the tensor {name} is not in the adapter")
        if tuple(shapes[name]) != shape:
            raise PayloadError(f"the tensor {name} has shape {shape}, the adapter expects {tuple(shapes[name])}")
    return None if len(own) == len(shapes) else tuple(name in own for name in sorted(shapes))


def _working(dtypes: Sequence[torch.dtype]) -> np.dtype[Any]:
    return np.dtype(np.float64 if torch.float64 in dtypes else np.float32)


def _flat(state: State, names: Sequence[str], dtype: np.dtype[Any]) -> Array:
    if not names:
        return np.zeros(0, dtype)
    target = torch.float64 if dtype == np.float64 else torch.float32
    values: Array = torch.cat([state[name].detach().reshape(-1).to("cpu", target) for name in names]).numpy()
    return values


def _reference(state: State, shapes: Mapping[str, Shape], dtype: np.dtype[Any]) -> Array:
    for name, shape in shapes.items():
        if name not in state or tuple(state[name].shape) != shape:
            raise ConfigError(f"the reference state holds no tensor {name} of shape {shape}")
    return _flat(state, list(shapes), dtype)


def _flat_weights(weights: State, shapes: Mapping[str, Shape], dtype: np.dtype[Any]) -> Array:
    full = {name: weights[name] if name in weights else torch.ones(shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if tuple(full[name].shape) != shape:
            raise PayloadError(f"the weights of {name} have shape {tuple(full[name].shape)}, not {shape}")
    flat = _flat(full, list(shapes), dtype)
    if not (np.isfinite(flat).all() and (flat >= 0).all()):
        raise PayloadError("weights must be finite and at least 0")
    return flat


def _tensors(values: Array, shapes: Mapping[str, Shape], dtypes: Sequence[torch.dtype]) -> State:
    if len(values) != total(list(shapes.values())):
        raise PayloadError("the payload does not fill the adapter")
    flat = torch.from_numpy(np.ascontiguousarray(values))
    pieces = torch.split(flat, [size(shape) for shape in shapes.values()]) if shapes else ()
    state = {}
    for (name, shape), piece, dtype in zip(shapes.items(), pieces, dtypes, strict=True):
        tensor = piece.to(dtype, copy=True).reshape(shape)
        if dtype in (torch.float16, torch.bfloat16) and not bool(tensor.isfinite().all()):
            raise PayloadError(f"{name} goes beyond the range of {dtype}")
        state[name] = tensor
    return state


def _check_finite(values: Array, names: Sequence[str], shapes: Mapping[str, Shape]) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    ends = np.cumsum(segment_sizes([shapes[name] for name in names]))
    name = names[int(np.searchsorted(ends, int(np.argmin(finite)), side="right"))]
    raise PayloadError(f"{name} holds NaN or infinity")


def segment_sizes(shapes: Sequence[Shape]) -> Array:
    """Entries of each segment, int64."""
    return np.array([size(shape) for shape in shapes], np.int64)


def segment_reduce(reduce: np.ufunc, values: Array, sizes: Array) -> Array:
    """`reduce` over consecutive segments of `values` of the given sizes; 0 for empty segments."""
    result = np.zeros(len(sizes), values.dtype)
    filled = sizes > 0
    if filled.any():
        starts = (np.cumsum(sizes) - sizes)[filled]
        result[filled] = reduce.reduceat(values, starts)
    return result

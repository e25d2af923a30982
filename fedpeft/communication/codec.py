"""Codecs: chains of `tensor steps -> one packer -> byte steps`, written as text.

    quantize(bits=4) | rans | zstd

A *transform* turns values into fewer or better behaved values (topk, lowrank, rotate, delta). One *quantizer* turns
values into symbols, integers below a small alphabet (cast, quantize, nf4, sign, adaptive). The *packer* turns symbols
into bytes (pack, rans), *byte steps* shrink bytes (zstd). All tensors of a state go through a step together, as one
vector. A missing quantizer is `cast` (fp32, lossless), a missing packer is `pack`.

`fedpeft.communication.decoding` reads payloads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Final

import numpy as np

from fedpeft.communication.payload import DTYPES, Header, Shape, compute_layout_digest, count_total, write_payload
from fedpeft.communication.steps import (
    ByteStep,
    Context,
    Packer,
    Quantizer,
    Signal,
    Step,
    TensorStep,
    Transform,
    check_order,
    get_step_name,
)
from fedpeft.communication.symbols import Symbols, bound_packed_size
from fedpeft.communication.vectors import (
    check_finite,
    choose_working_dtype,
    describe_mismatch,
    flatten_reference,
    flatten_tensors,
    flatten_weights,
)
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.parts.families import PRESETS, codecs, split_steps
from fedpeft.parts.spec import Spec, parse_spec
from fedpeft.peft.adapter import State

HEADER_SIZE: Final = 64
"""Approximate bytes of a header with four steps, which a step with a budget sets aside."""


@dataclass(frozen=True)
class Codec:
    """A checked pipeline. Its text form round-trips: `parse_codec(str(codec)) == codec`."""

    tensor_steps: tuple[TensorStep, ...]
    packer: Packer
    byte_steps: tuple[ByteStep, ...] = ()

    def __post_init__(self) -> None:
        """Check that the transforms suit the quantizer and the gain.

        Raises:
            ConfigError: a gain would act on factors of a product, or a grid on the result of a transform.
        """
        transforms = [step for step in self.tensor_steps if isinstance(step, Transform)]
        if transforms and self.quantizer.chains:
            raise ConfigError(
                f"FP1051 {self}: grid quantizes the state itself, so no transform may precede it; remove the transform"
            )
        if self.gain != "none" and not all(step.proportional for step in transforms):
            raise ConfigError(
                f"FP1052 {self}: gain would scale both factors of a product; leave out gain, or the low-rank step "
                "before it"
            )

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer, which is the last tensor step."""
        quantizer = self.tensor_steps[-1]
        assert isinstance(quantizer, Quantizer)  # `check_order` has seen to it
        return quantizer

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in the order of encoding."""
        return (*self.tensor_steps, self.packer, *self.byte_steps)

    @cached_property
    def lossless(self) -> bool:
        """Whether a state of fp32, bf16 or fp16 tensors comes back bit for bit."""
        return all(step.lossless for step in self.steps)

    def __str__(self) -> str:
        """Return the text form."""
        return " | ".join(map(str, self.steps))

    @property
    def bits(self) -> float:
        """Bits per parameter that the quantizer aims at; 0 if its precision can't be set."""
        return float(getattr(self.quantizer, "bits", 0))

    @property
    def gain(self) -> str:
        """The length that gain restores: `length`, each update's own; `mean`, that of many updates' mean; or `none`."""
        gains = (str(getattr(step, "gain", "none")) for step in self.tensor_steps)
        return next((gain for gain in gains if gain != "none"), "none")

    def remove_gain(self) -> Codec:
        """Return the codec without gain, so that the decoded update is as close to the original as possible."""
        steps = tuple(
            replace(step, gain="none") if getattr(step, "gain", "none") != "none" else step  # type: ignore[type-var]
            for step in self.tensor_steps
        )
        return replace(self, tensor_steps=steps)

    def set_bits(self, bits: float) -> Codec:
        """Return the codec at another precision, for precision that changes over time or from client to client.

        Args:
            bits: bits per parameter if the quantizer works to a budget (adaptive, widths); whole bits for `quantize`.

        Raises:
            ConfigError: the precision of the codec's quantizer can't be set.
        """
        quantizer = self.quantizer
        found = {f.name: f for f in fields(quantizer)}.get("bits")  # type: ignore[arg-type]
        if found is None or getattr(quantizer, "step", None) is not None:
            raise ConfigError(
                f"FP1046 the precision of {self} can't be set; use adaptive, widths or quantize(bits=...)"
            )
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
        turn: int = 0,
    ) -> bytes:
        """Encode the state as one payload; its length is what a transfer costs.

        Args:
            state: tensors by name (fp32, bf16, fp16 or fp64), finite.
            seed: seed of dither, rotation and stochastic rounding, modulo 2^64. Use another one for each client and
                round, or the errors of a cohort do not average out.
            weights: sensitivity by name, same shapes, at least 0. An error e in an entry with sensitivity s counts as s
                * e (see `fedpeft.communication.bit_allocation.compute_sensitivity`). Missing names count as 1.
            shapes: shapes of the whole adapter, if `state` may contain only some of its tensors; default: those of
                `state`.
            reference: version and state that a `delta` step subtracts; both ends hold it.
            turn: at least 0; increases from round to round, and from client to client (`segments`).

        Raises:
            PayloadError: a tensor is not finite, has another dtype, or is not in `shapes`.
            ConfigError: a `delta` step has no reference, or a step's symbols lie outside of their alphabet.
        """
        own = {name: tuple(state[name].shape) for name in sorted(state)}
        sent = _find_subset(own, own if shapes is None else shapes)
        seed %= 1 << 64
        symbols, parameters = self.create_symbols(state, seed=seed, weights=weights, reference=reference, turn=turn)
        body = self.packer.pack(symbols)
        for byte_step in self.byte_steps:
            body = byte_step.encode(body)
        parameters += [b""] * (1 + len(self.byte_steps))
        header = Header(
            compute_layout_digest(own if shapes is None else shapes),
            sent,
            tuple(state[name].dtype for name in own),
            seed if any(step.draws for step in self.steps) else None,
            tuple((get_step_name(step), p) for step, p in zip(self.steps, parameters, strict=True)),
        )
        return write_payload(header, body)

    def create_symbols(
        self,
        state: State,
        *,
        seed: int = 0,
        weights: State | None = None,
        reference: tuple[int, State] | None = None,
        turn: int = 0,
    ) -> tuple[list[Symbols], list[bytes]]:
        """Run the tensor steps on a state, and return all symbols and each step's parameters.

        `encode` describes arguments and errors.
        """
        own = {name: tuple(state[name].shape) for name in sorted(state)}
        for name in own:
            if state[name].dtype not in DTYPES:
                raise PayloadError(
                    f"FP6025 {name} is {state[name].dtype}; a payload holds fp32, bf16, fp16 or fp64 tensors"
                )
        dtype = choose_working_dtype([state[name].dtype for name in own])
        flat = flatten_tensors(state, list(own), dtype)
        check_finite(flat, list(own), own)
        signal = Signal(flat, tuple(own.values()), None if weights is None else flatten_weights(weights, own, dtype))
        base = None if reference is None else (reference[0], flatten_reference(reference[1], own, dtype))
        parameters: list[bytes] = []
        symbols: list[Symbols] = []
        with np.errstate(all="ignore"):  # what overflows is not finite, and the receiver refuses it
            for position, step in enumerate(self.tensor_steps):
                spent = HEADER_SIZE + sum(map(len, parameters)) + bound_packed_size([s.expectation for s in symbols])
                made = step.encode(signal, Context(seed, position, dtype, len(flat), spent, base, turn=turn))
                for one in made.symbols:
                    one.check(get_step_name(step))
                parameters.append(made.parameters)
                symbols += made.symbols
                signal = made.signal or signal
                if wrong := describe_mismatch(signal.values, count_total(signal.shapes)):
                    raise ConfigError(
                        f"FP1047 the codec step {get_step_name(step)} turns shapes {signal.shapes!s:.80} into "
                        f"{wrong}; correct its encode()"
                    )
        return symbols, parameters


def parse_codec(text: str) -> Codec:
    """Build the codec that `text` describes: a preset's name, or steps separated by `|`.

    Raises:
        ConfigError: a step or setting is unknown, a value is out of range, or the order of steps is wrong.
    """
    words = split_steps(PRESETS.get(text.strip(), text))
    if not all(words):
        raise ConfigError(f"FP1049 the codec {text!r} has an empty step; write step | step | ...")
    specs = [parse_spec(word) for word in words]
    if len(specs) == 1:
        codecs.check_alone(specs[0], text)
    return make_codec([codecs.build(spec) for spec in specs])


def make_codec(steps: Sequence[Step]) -> Codec:
    """Build a codec of these steps, and add `cast` and `pack` if the quantizer or the packer is missing.

    Raises:
        ConfigError: the order of the steps can't work, a gain would act on factors of a product, or a grid on the
            result of a transform.
    """
    completed = list(steps)
    for kind, default in ((Quantizer, "cast"), (Packer, "pack")):
        places = [step.place for step in completed]
        if kind.place not in places:
            completed.insert(sum(place < kind.place for place in places), codecs.build(Spec(default, {})))
    check_order([type(s) for s in completed])
    return Codec(
        tuple(s for s in completed if isinstance(s, TensorStep)),
        next(s for s in completed if isinstance(s, Packer)),
        tuple(s for s in completed if isinstance(s, ByteStep)),
    )


def _find_subset(own: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> tuple[bool, ...] | None:
    for name, shape in own.items():
        if name not in shapes:
            raise PayloadError(f"FP6026 the tensor {name} is not in the adapter")
        if tuple(shapes[name]) != shape:
            raise PayloadError(f"FP6027 the tensor {name} has shape {shape}, the adapter expects {tuple(shapes[name])}")
    return None if len(own) == len(shapes) else tuple(name in own for name in sorted(shapes))

"""The reader's path from a payload of a peer, possibly hostile, to a state.

Decoding needs no configuration: the payload's header names the steps and their parameters. It runs in three passes, and
nothing in the payload can make it allocate more than the receiver's own shapes require:

1. Plan, forward: from the expected shapes, each step decides which symbols it needs and what shapes it leaves.
2. Unpack: byte steps and packer receive the exact number of symbols, hence a bound on their bytes.
3. Undo, backward: symbols become values, and values become tensors; the result must be finite.

Memory: decoding takes at most 32 times the adapter's size in fp32, plus 1 MiB, whatever a payload contains. The worst
case is a full-rank `lowrank` of square fp64 matrices. For fp32 LoRA factors it takes at most 16 times, and 4 to 10 for
the presets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from fedpeft.communication.payload import Array, Header, Reader, Shape, count_total, read_payload
from fedpeft.communication.steps import ByteStep, Context, Packer, Plan, Step, TensorStep, check_order
from fedpeft.communication.symbols import Expected
from fedpeft.communication.vectors import (
    check_finite,
    choose_working_dtype,
    describe_mismatch,
    flatten_tensors,
    unflatten_tensors,
)
from fedpeft.errors import ConfigError, FedpeftError, PayloadError
from fedpeft.parts.families import codecs
from fedpeft.peft.adapter import State

CRASHES: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors that a payload may cause if a check is missing; they become a `PayloadError`, not a crash."""


def decode(
    payload: bytes,
    shapes: Mapping[str, Shape],
    *,
    references: Mapping[int, State] | None = None,
    agreed: Sequence[Step] | None = None,
) -> State:
    """Decode the state in a payload, for an adapter of these `shapes`; tensors keep the dtypes of the sender.

    Args:
        payload: bytes from a peer, possibly hostile.
        shapes: the tensors that the payload may contain; all of them, unless it declares a subset.
        references: states that both ends hold, by version, for payloads made with a `delta` step.
        agreed: the steps of the codec that the sender was told to use, which limit costly steps; None: there is no such
            limit.

    Raises:
        PayloadError: the payload is not what `Codec.encode` makes for such an adapter.
    """
    try:
        return _decode(payload, shapes, references or {}, agreed)
    except FedpeftError:
        raise
    except CRASHES as error:
        raise PayloadError(f"FP6040 the payload is not valid ({type(error).__name__}: {error})") from error


def decode_whole(payload: bytes, shapes: Mapping[str, Shape], agreed: Sequence[Step] | None = None) -> State:
    """Decode a payload as `decode` does, and check that no tensor is missing.

    Raises:
        PayloadError: the payload is not valid, or tensors are missing.
    """
    return check_whole(decode(payload, shapes, agreed=agreed), shapes)


def check_whole(state: State, shapes: Mapping[str, Shape]) -> State:
    """Return the state if it has a tensor for each of the `shapes`: a payload from a peer may contain only some.

    Raises:
        PayloadError: tensors are missing.
    """
    if missing := [name for name in shapes if name not in state]:
        raise PayloadError(f"FP6041 {len(missing)} of {len(shapes)} tensors were not sent, among them {missing[0]}")
    return state


def _decode(
    payload: bytes, shapes: Mapping[str, Shape], references: Mapping[int, State], agreed: Sequence[Step] | None
) -> State:
    header, data = read_payload(payload, shapes)
    ordered = sorted(shapes)
    names = ordered if header.sent is None else [n for n, sent in zip(ordered, header.sent, strict=True) if sent]
    dtype = choose_working_dtype(header.dtypes)

    def reference(version: int) -> Array | None:
        state = references.get(version, {})
        return flatten_tensors(state, names, dtype) if all(name in state for name in names) else None

    classes = _load_step_classes(header)
    segments = tuple(tuple(shapes[name]) for name in names)
    parameters = count_total(segments)
    plans: list[Plan] = []
    counts: list[int] = []  # of the values before each
    for position, (step, (name, settings)) in enumerate(zip(classes, header.steps, strict=True)):
        reader = Reader(settings, f"the payload's step {name}")
        if issubclass(step, TensorStep):
            context = Context(header.seed or 0, position, dtype, parameters, references=reference, agreed=agreed)
            counts.append(count_total(segments))
            plans.append(step.plan(reader, segments, context))
            segments = plans[-1].shapes
        reader.end()
    unpacked = _unpack(data, classes, [e for plan in plans for e in plan.symbols])
    values = np.zeros(0, dtype)
    with np.errstate(all="ignore"):
        for plan, (name, _) in reversed(list(zip(plans, header.steps, strict=False))):  # behind them: packer, bytes
            first = len(unpacked) - len(plan.symbols)
            values = _undo_step(name, plan, values, unpacked[first:], counts.pop())
            del unpacked[first:]
    own = {name: tuple(shapes[name]) for name in names}
    check_finite(values, names, own)
    state = unflatten_tensors(values, own, header.dtypes)
    return {name: state[name] for name in shapes if name in state}


def _undo_step(name: str, plan: Plan, values: Array, symbols: Sequence[Array], count: int) -> Array:
    """Return the `count` values before a step, which may come from a plugin.

    Raises:
        PayloadError: the step makes no such values; the message names it.
    """
    try:
        made = plan.undo(values, symbols)
    except CRASHES as error:
        raise PayloadError(
            f"FP6042 the payload's step {name} can't be undone ({type(error).__name__}: {error})"
        ) from error
    if wrong := describe_mismatch(made, count):
        raise PayloadError(f"FP6043 the payload's step {name} is undone into {wrong}")
    return made


def _load_step_classes(header: Header) -> list[type[Step]]:
    try:
        classes = [codecs.load_part(name) for name, _ in header.steps]
        check_order(classes)
    except ConfigError as error:
        raise PayloadError(f"FP6044 the payload can't be decoded: {error}") from None
    if header.seed is None and any(step.draws is True for step in classes):
        raise PayloadError("FP6045 the payload has a step that draws random numbers, but no seed")
    return classes


def _unpack(data: memoryview, classes: Sequence[type[Step]], expected: Sequence[Expected]) -> list[Array]:
    packer = next(step for step in classes if issubclass(step, Packer))
    bounds = [packer.bound(expected)]
    byte_steps = [step for step in classes if issubclass(step, ByteStep)]
    for step in byte_steps:
        bounds.append(step.limit(bounds[-1]))
    if len(data) > bounds[-1]:
        raise PayloadError(
            f"FP6046 the payload's body has {len(data)} bytes; such an adapter takes at most {bounds[-1]}"
        )
    for step, bound in zip(reversed(byte_steps), reversed(bounds[:-1]), strict=True):
        data = step.decode(data, bound)
    return packer.unpack(data, expected)

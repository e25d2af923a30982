"""A state as one vector, which the tensor steps of a codec work on, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedpeft.communication.payload import Array, Shape, count_entries, count_total
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.peft.adapter import State


def choose_working_dtype(dtypes: Sequence[torch.dtype]) -> np.dtype[Any]:
    """Return the precision that steps work in: fp64 if any tensor sent is fp64, else fp32."""
    return np.dtype(np.float64 if torch.float64 in dtypes else np.float32)


def flatten_tensors(state: State, names: Sequence[str], dtype: np.dtype[Any]) -> Array:
    """Return the tensors of `names`, one after the other, (n,)."""
    if not names:
        return np.zeros(0, dtype)
    target = torch.float64 if dtype == np.float64 else torch.float32
    values: Array = torch.cat([state[name].detach().reshape(-1).to("cpu", target) for name in names]).numpy()
    return values


def flatten_reference(state: State, shapes: Mapping[str, Shape], dtype: np.dtype[Any]) -> Array:
    """Return the reference state of a `delta` step as one vector.

    Raises:
        ConfigError: the state lacks a tensor of `shapes`.
    """
    for name, shape in shapes.items():
        if name not in state or tuple(state[name].shape) != shape:
            raise ConfigError(f"FP1072 the reference state holds no tensor {name} of shape {shape}")
    return flatten_tensors(state, list(shapes), dtype)


def flatten_weights(weights: State, shapes: Mapping[str, Shape], dtype: np.dtype[Any]) -> Array:
    """Return sensitivities as one vector; missing tensors count as 1.

    Raises:
        PayloadError: a shape is wrong, or a value is below 0 or not finite.
    """
    full = {name: weights[name] if name in weights else torch.ones(shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if tuple(full[name].shape) != shape:
            raise PayloadError(f"FP6080 the weights of {name} have shape {tuple(full[name].shape)}, not {shape}")
    flat = flatten_tensors(full, list(shapes), dtype)
    if not (np.isfinite(flat).all() and (flat >= 0).all()):
        raise PayloadError("FP6081 weights must be finite and at least 0")
    return flat


def unflatten_tensors(values: Array, shapes: Mapping[str, Shape], dtypes: Sequence[torch.dtype]) -> State:
    """Split a vector into tensors of these shapes and dtypes.

    Raises:
        PayloadError: the vector does not fill the tensors, or exceeds the range of a dtype.
    """
    if len(values) != count_total(list(shapes.values())):
        raise PayloadError("FP6082 the payload does not fill the adapter")
    flat = torch.from_numpy(np.ascontiguousarray(values))
    pieces = torch.split(flat, [count_entries(shape) for shape in shapes.values()]) if shapes else ()
    state = {}
    for (name, shape), piece, dtype in zip(shapes.items(), pieces, dtypes, strict=True):
        tensor = piece.to(dtype, copy=True).reshape(shape)
        if dtype in (torch.float16, torch.bfloat16) and not bool(tensor.isfinite().all()):
            raise PayloadError(f"FP6083 {name} goes beyond the range of {dtype}")
        state[name] = tensor
    return state


def describe_mismatch(made: Any, count: int) -> str:
    """Describe the result of a step that is not `count` numbers; empty: it is."""
    if not isinstance(made, np.ndarray):
        return f"a {type(made).__name__}, and not an array"
    if made.shape != (count,) or not np.can_cast(made.dtype, np.float64):
        return f"an array {made.shape} of {made.dtype}, and not {count} numbers"
    return ""


def check_finite(values: Array, names: Sequence[str], shapes: Mapping[str, Shape]) -> None:
    """Reject NaN and infinity in `values`.

    Raises:
        PayloadError: the message names the first such tensor.
    """
    if np.isfinite(values.max(initial=0)) and np.isfinite(values.min(initial=0)):
        return
    ends = np.cumsum(count_segment_entries([shapes[name] for name in names]))
    name = names[int(np.searchsorted(ends, int(np.argmin(np.isfinite(values))), side="right"))]
    raise PayloadError(f"FP6084 {name} holds NaN or infinity")


def count_segment_entries(shapes: Sequence[Shape]) -> Array:
    """Count the entries of each segment, int64."""
    return np.array([count_entries(shape) for shape in shapes], np.int64)


def block_sizes(count: int, block: int) -> Array:
    """Return the sizes of blocks of `block` entries, and of the rest, that together have `count` entries, int64."""
    full, tail = divmod(count, block)
    return np.array([block] * full + [tail] * (tail > 0), np.int64)


def reduce_segments(reduce: np.ufunc, values: Array, sizes: Array) -> Array:
    """Apply `reduce` to consecutive segments of `values` of the given sizes; 0 for empty segments."""
    result = np.zeros(len(sizes), values.dtype)
    filled = sizes > 0
    if filled.any():
        starts = (np.cumsum(sizes) - sizes)[filled]
        result[filled] = reduce.reduceat(values, starts)
    return result

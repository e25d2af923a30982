"""The values of a foreign object as tensors in a checkpoint; no code is ever read back from it.

Values are numbers, texts, arrays, tensors, Flower's records and parameters, random generators, and lists, tuples, sets
and dicts of them. Each becomes a tensor, or a place in a JSON text, which is itself a tensor of bytes.
"""

from __future__ import annotations

import functools
import json
import random
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

import cloudpickle
import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.common import Parameters

from fedpeft.errors import RunError
from fedpeft.peft.adapter import State

FORM: Final = "form"
"""Name of the tensor with the JSON text; the others are called 0, 1, ..."""

CODE: Final = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    type,
    types.ModuleType,
)
"""Types of values that an object is given once and doesn't change."""

PLAIN: Final = (bool, int, float, str)

RECORDS: Final = {"config": ConfigRecord, "metrics": MetricRecord}
GENERATORS: Final = {name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")}


class _StrangeError(Exception):
    """A value of a type that is not kept."""


def pickle_unsaved(values: Mapping[str, Any]) -> dict[str, bytes]:
    """Pickle those values of an object that are neither kept nor code; the bytes show whether a value changes."""
    found: dict[str, bytes] = {}
    for name, value in values.items():
        if isinstance(value, CODE):
            continue
        try:
            _write_value(value, {})
        except _StrangeError:
            found[name] = _pickle(value)
    return found


def save_values(values: Mapping[str, Any], before: Mapping[str, bytes], owner: str) -> State:
    """Return the values as tensors.

    Args:
        values: the object's attributes.
        before: what `pickle_unsaved` returned when the object was created.
        owner: the class's name.

    Raises:
        RunError: an attribute that can't be kept has changed.
    """
    tensors: State = {}
    form: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, CODE):
            continue
        try:
            form[name] = _write_value(value, tensors)
        except _StrangeError as strange:
            if not (same := before.get(name)) or same != _pickle(value):
                raise RunError(
                    f"FP5136 {owner} changes self.{name}, which holds {strange}, and no checkpoint can keep that "
                    "between rounds; keep numbers, texts, arrays, and lists and dicts of them"
                ) from None
    text = np.frombuffer(json.dumps(form).encode(), dtype=np.uint8)
    return tensors | {FORM: torch.from_numpy(text.copy())}


def restore_values(state: State) -> dict[str, Any]:
    """Return the attributes that `save_values` was given."""
    form: dict[str, Any] = json.loads(bytes(state[FORM].numpy().tobytes()))
    return {name: _read(value, state) for name, value in form.items()}


def _pickle(value: Any) -> bytes:
    """Return bytes that differ if the value does; empty: it can't be pickled."""
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception:  # whatever a foreign object raises
        return b""


def _put(tensor: torch.Tensor, tensors: State) -> int:
    place = len(tensors)
    tensors[str(place)] = tensor.detach().clone().contiguous()
    return place


def _write_array(value: np.ndarray[Any, Any], tensors: State) -> int:
    try:
        return _put(torch.from_numpy(np.array(value)), tensors)
    except TypeError:
        raise _StrangeError(f"an array of {value.dtype}") from None


def _write_record(record: Mapping[str, Any], tensors: State) -> Any:
    return _write_value(dict(record), tensors)


WRITERS: tuple[tuple[str, type, Callable[[Any, State], Any]], ...] = (
    ("array", np.ndarray, _write_array),
    ("number", np.generic, lambda value, tensors: _write_array(np.asarray(value), tensors)),
    ("tensor", torch.Tensor, lambda value, tensors: _put(value.cpu(), tensors)),
    ("bytes", bytes, lambda value, tensors: _write_array(np.frombuffer(value, np.uint8), tensors)),
    (
        "parameters",
        Parameters,
        lambda value, tensors: [[_write_value(t, tensors) for t in value.tensors], value.tensor_type],
    ),
    (
        "arrays",
        ArrayRecord,
        lambda value, tensors: [[name, _write_array(array.numpy(), tensors)] for name, array in value.items()],
    ),
    ("generator", np.random.Generator, lambda value, tensors: _write_value(value.bit_generator.state, tensors)),
    ("random", random.Random, lambda value, tensors: _write_value(value.getstate(), tensors)),
    *((kind, record, _write_record) for kind, record in RECORDS.items()),
)
"""How values are written: the kind, the class of the values, and a function that returns their content as JSON."""


def _write_value(value: Any, tensors: State) -> Any:
    """Return a value as JSON: a plain one as it is, others as [kind, content]."""
    if value is None or type(value) in PLAIN:  # an exact type: a member of a text enumeration would return as a text
        return value
    for kind, cls, write in WRITERS:
        if isinstance(value, cls):
            return [kind, write(value, tensors)]
    if type(value) in (list, tuple, set):
        return [type(value).__name__, [_write_value(item, tensors) for item in value]]
    if type(value) is dict:
        return ["dict", [[_write_value(key, tensors), _write_value(item, tensors)] for key, item in value.items()]]
    raise _StrangeError(f"a {type(value).__name__}")


def _read(value: Any, state: State) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind in ("array", "number", "bytes"):
        array = np.array(state[str(content)].numpy())
        return {"array": array, "number": array[()], "bytes": array.tobytes()}[kind]
    if kind == "tensor":
        return state[str(content)].clone()
    if kind == "parameters":
        return Parameters([_read(t, state) for t in content[0]], content[1])
    if kind == "arrays":
        return ArrayRecord({name: Array(state[str(place)].numpy()) for name, place in content})
    if kind == "generator":
        found = _read(content, state)
        bits = GENERATORS[found["bit_generator"]]()
        bits.state = found
        return np.random.Generator(bits)
    if kind == "random":
        drawn = random.Random()
        drawn.setstate(_read(content, state))
        return drawn
    if kind in RECORDS:
        return RECORDS[kind](_read(content, state))
    if kind == "dict":
        return {_read(key, state): _read(item, state) for key, item in content}
    return {"list": list, "tuple": tuple, "set": set}[kind](_read(item, state) for item in content)

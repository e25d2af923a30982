"""A second device for tests on machines without a GPU.

Its numbers lie in ordinary memory. As on a GPU, an operation with tensors of both devices raises an error. It does not
simulate the numerics of a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("torch 2.9 has no devices in Python", allow_module_level=True)

NAME = "elsewhere"
DEVICE = f"{NAME}:0"


class Module(backend_registration._DummyBackendModule):
    """What `torch.elsewhere` offers."""

    def is_available(self):
        """Keep accelerate from choosing this device on its own and emptying its cache: it has none."""
        return False

    def get_amp_supported_dtype(self):
        return []


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())

aten = torch.ops.aten
CROSSING = (aten._to_copy.default, aten.copy_.default)
"""The operations that may see both devices."""


class Elsewhere(torch.Tensor):
    """A tensor of that device, around one of the CPU."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw):
        shape = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype, "device": DEVICE}
        made = torch.Tensor._make_wrapper_subclass(cls, raw.shape, **shape)
        made.raw = raw
        return made

    def __repr__(self):
        return f"Elsewhere({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), named=None):
        return run(operation, *arguments, **(named or {}))


def run(operation, *arguments, **named):
    """Run an operation on the tensors' numbers; the result stays on this device unless the CPU is requested."""
    tensors = [t for t in tree_leaves((arguments, named)) if isinstance(t, torch.Tensor)]
    if operation not in CROSSING and any(t.ndim and not isinstance(t, Elsewhere) for t in tensors):
        raise RuntimeError(f"{operation}: a tensor on the cpu meets one on {DEVICE}")
    target = named.get("device")
    to_cpu = target is not None and torch.device(target).type == "cpu"
    if operation is aten.copy_.default and not isinstance(arguments[0], Elsewhere):
        return arguments[0].copy_(raw(arguments[1]))
    given = {**named, "device": "cpu"} if target is not None else named
    found = operation(*tree_map(raw, arguments), **tree_map(raw, given))
    own = {id(t.raw): t for t in tensors if isinstance(t, Elsewhere)}

    def there(value):
        if not isinstance(value, torch.Tensor) or to_cpu:
            return value
        return own.get(id(value)) if id(value) in own else Elsewhere(value)

    return tree_map(there, found)


def raw(value):
    """Return the inner tensor of a tensor on this device, and other values unchanged."""
    return value.raw if isinstance(value, Elsewhere) else value


_everything = torch.library.Library("_", "IMPL")
_everything.fallback(run, "PrivateUse1")
_made = torch.library.Library("aten", "IMPL")
_made.impl("eye.m", lambda rows, columns, **named: run(aten.eye.m, rows, columns, **named), "PrivateUse1")
_made.impl("eye", lambda rows, **named: run(aten.eye.default, rows, **named), "PrivateUse1")

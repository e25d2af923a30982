"""The outcome of a run as recorded in its folder, without times, memory and versions, which cannot repeat.

Tensors: the server's last checkpoint (global state, optimizer, residual, control variate, in the run's own precision),
the saved adapter or model, and the scores per test example. Values: the lines of rounds.jsonl and clients.jsonl, and
summary.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

Value = str | int | float | bool | None

STATES = ("checkpoint", "adapter", "model", "centralised")
"""Folders of a run that contain states."""

BOOKKEEPING = ("clients/", "in_flight/")
"""Prefixes of a checkpoint's tensors that record broadcasts and training clients; older checkpoints lack them."""

UNREPEATED = (
    *("seconds", "memory", "versions", "resumed", "wire_", "cpu", "gpus", "system", "not_covered"),
    "phases",  # names and times of phases
    "audit_epsilon",  # its noise is never reproducible
)
"""Parts of the names of values that are not results: they differ between runs of one commit, or are prose."""

FLOOR = 1e-6
"""Smallest scale of a relative difference, so that rounding errors around zero do not count."""


@dataclass(frozen=True)
class Outcome:
    """Tensors and values of a finished run, by name."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A tensor or value that is not equal bit for bit.

    Attributes:
        name: name of the tensor or value.
        amount: the largest difference of two entries over the largest entry; infinite if that has no meaning.
    """

    name: str
    amount: float

    def __str__(self) -> str:
        """Return the name with the amount."""
        return f"{self.name} by {self.amount:.1e}" if math.isfinite(self.amount) else f"{self.name} altogether"


def read_outcome(folder: Path) -> Outcome:
    """Read the outcome of the finished run in `folder`."""
    tensors: dict[str, Tensor] = {}
    for state in STATES:
        for file in sorted((folder / state).rglob("*.safetensors")):
            found = {n: t for n, t in load_file(file).items() if not n.startswith(BOOKKEEPING)}
            tensors |= {f"{file.relative_to(folder).with_suffix('')} {n}": t for n, t in found.items()}
    scores = folder / "predictions.npz"  # a server has none
    if scores.exists():
        with np.load(scores) as columns:
            tensors |= {f"predictions {name}": torch.from_numpy(columns[name]) for name in columns}
    values: dict[str, Value] = {}
    for kind, about in (("rounds", "round"), ("clients", "client")):
        file = folder / f"{kind}.jsonl"
        for line in map(json.loads, file.read_text().splitlines()):
            where = f"round {line['round']}" + (f" client {line['client']}" if about == "client" else "")
            values |= _flatten(where, line)
    return Outcome(tensors, values | _flatten("summary", json.loads((folder / "summary.json").read_text())))


def _flatten(name: str, value: Any) -> dict[str, Value]:
    if any(word in name for word in UNREPEATED):
        return {}
    if isinstance(value, dict):
        return {key: v for part, inner in value.items() for key, v in _flatten(f"{name} {part}", inner).items()}
    if isinstance(value, list):
        return {key: v for i, inner in enumerate(value) for key, v in _flatten(f"{name} {i}", inner).items()}
    return {name: value}


def find_differences(reference: Outcome, other: Outcome) -> list[Difference]:
    """Return what `other` lacks or has with another value, the largest first; additional values do not count."""
    found = [
        *(Difference(name, compute_distance(a, other.tensors.get(name))) for name, a in reference.tensors.items()),
        *(
            Difference(name, compute_value_distance(a, other.values.get(name, _MISSING)))
            for name, a in reference.values.items()
        ),
        *(Difference(name, math.inf) for name in other.tensors if name not in reference.tensors),
    ]
    return sorted((d for d in found if d.amount), key=lambda d: -d.amount)


def find_added(reference: Outcome, other: Outcome) -> list[str]:
    """Return the names of values that only `other` has."""
    return [name for name in other.values if name not in reference.values]


def compute_distance(one: Tensor, other: Tensor | None) -> float:
    """Return the distance of two tensors, relative to the larger of their largest entries."""
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    if torch.equal(one, other):
        return 0.0
    a, b = one.double(), other.double()
    amount = float((a - b).abs().max() / max(FLOOR, float(a.abs().max()), float(b.abs().max())))
    return amount if math.isfinite(amount) else math.inf


_MISSING = "(missing)"


def compute_value_distance(one: Value, other: Value) -> float:
    """Return the relative distance of two values; infinite if they differ and are not numbers."""
    if one == other and type(one) is type(other):
        return 0.0
    if not (_is_number(one) and _is_number(other)):
        return math.inf
    a, b = float(one), float(other)  # type: ignore[arg-type]
    return abs(a - b) / max(FLOOR, abs(a), abs(b)) if a != b else math.inf  # 2 and 2.0 are not the same


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""`examples/minimal.py` as a module, the settings with which fedpeft computes the same, and the comparison."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file

from fedpeft.rounds.progress import Checkpoints

MINIMAL = Path(__file__).parent.parent / "examples" / "minimal.py"
SETTINGS = {
    "cohort": "all",
    "rounds": 3,
    "model": "tiny",
    "peft": "lora(rank=8, alpha=32, layers=0)",
    "dtype": "fp64",
    "head": "zero",
    "drift": "",
    "safeguard": "none",
    "local_work": "epochs(1.0)",
    "learning_rate": 2e-3,
    "optimizer": "adamw(schedule=constant, head_rate=0.1)",
    "batch_size": 4,
    "measure": "validation(keep=last)",
    "workers": 1,
}


def load_minimal() -> ModuleType:
    """Import the example from its file."""
    spec = importlib.util.spec_from_file_location("minimal", MINIMAL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compute_distance(state: dict[str, torch.Tensor], run: Path) -> float:
    """Return the largest difference between the example's state and a run's, over the adapter and the fp64 head."""
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    adapter |= {n: t for n, t in Checkpoints(run / "checkpoint").load().adapter.items() if n.startswith("head.")}
    names = {name.removeprefix("base.").replace(".default.", "."): name for name in state}
    assert names.keys() == adapter.keys()
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float64}
    return max(float((state[name] - adapter[key]).abs().max()) for key, name in names.items())

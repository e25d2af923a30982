"""The tiny models with weights from integer arithmetic alone.

The last digits of seeded random weights depend on the processor and on torch's release, and so do all later results.
These weights are the same everywhere. The language model also gets a chat template, for instruction data.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedpeft.data.made_words import WORDS
from fedpeft.models.base_model import resolve_model

SPREAD = np.float32(0.26)
"""Weights are uniform in -SPREAD .. SPREAD, about as large as the tiny models' own weights."""

TEMPLATE = (
    "{% for m in messages %}{{ '" + WORDS[0] + " ' if m.role == 'user' else '" + WORDS[1] + " ' }}{{ m.content }} "
    "{% endfor %}{% if add_generation_prompt %}{{ '" + WORDS[1] + " ' }}{% endif %}"
)


def make_models(folder: Path) -> None:
    """Write the folders `tiny` and `tiny_lm`, which `--model` takes."""
    for name in ("tiny", "tiny_lm"):
        shutil.copytree(resolve_model(name), folder / name)
        file = folder / name / "model.safetensors"
        made, start = {}, 1
        for tensor_name, tensor in sorted(load_file(file).items()):
            made[tensor_name] = create_weights(tensor_name, tuple(tensor.shape), start)
            start += tensor.numel()
        save_file(made, file, metadata={"format": "pt"})
    (folder / "tiny_lm" / "chat_template.jinja").write_text(TEMPLATE)


def create_weights(name: str, shape: tuple[int, ...], start: int) -> Tensor:
    """Return the entries from `start` on of one long sequence; weights of norms lie around 1."""
    i = np.arange(start, start + int(np.prod(shape, dtype=int)), dtype=np.uint64)
    mixed = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    uniform = (mixed.astype(np.float32) / np.float32(2**23) - np.float32(1)) * SPREAD
    around = np.float32(1 if "norm" in name.lower() and name.endswith("weight") else 0)
    return torch.from_numpy(uniform + around).reshape(shape)

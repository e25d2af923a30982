"""LoRA factors as a folder of the `peft` library, written without the base model.

Old versions of `peft` can load the folder. Evaluations pin such versions, and versions before 0.15 refuse unknown keys.
So only keys of `peft` 0.6 are written. A DoRA adapter has one more key, which needs 0.9.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedpeft.machine.files import raise_write_errors
from fedpeft.models.task import PEFT_PREFIX
from fedpeft.peft.adapter import Layout, State
from fedpeft.peft.low_rank import LowRank
from fedpeft.peft.saved_adapter import ADAPTER_CONFIG, add_residual

WEIGHTS = "adapter_model.safetensors"
MAGNITUDE = "lora_magnitude_vector"


def write_lora(
    folder: Path, layout: Layout, state: State, base_name: str, residual: Mapping[str, Tensor] | None = None
) -> None:
    """Write a language model's LoRA (or DoRA) state to `folder`.

    Args:
        folder: created if it does not exist.
        layout: the layout of LoRA's tensors, with rank and alpha.
        state: the factors, and DoRA's magnitudes, by canonical name.
        base_name: the public name of the base model.
        residual: residuals of exact rules in the base, by module; they become part of the factors.

    Raises:
        RunError: the files can't be written.
    """
    form = layout.form
    assert form is not None, "a layout of LoRA"
    ranks: dict[str, int] = {}
    rank, alpha = form.rank, form.alpha
    tensors = {
        PEFT_PREFIX + name.replace(f"{MAGNITUDE}.weight", MAGNITUDE): tensor.float().contiguous()
        for name, tensor in state.items()
    }
    if residual:
        changes = add_residual({p.module: LowRank(state[p.B] * form.scale, state[p.A]) for p in layout.pairs}, residual)
        rank = max(change.width for change in changes.values())
        alpha = float(rank)
        ranks = {module: change.width for module, change in changes.items() if change.width != rank}
        tensors = {
            f"{PEFT_PREFIX}{module}.{name}.weight": factor.to(torch.float32).contiguous()
            for module, change in changes.items()
            for name, factor in (("lora_A", change.right), ("lora_B", change.left))
        }
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [pair.module for pair in layout.pairs],
        "rank_pattern": ranks,
        "alpha_pattern": dict(ranks),
    }
    if any(MAGNITUDE in name for name in state):
        config["use_dora"] = True
    with raise_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

"""What the model is asked to do: classify a row, or predict its next tokens.

A `Task` turns raw rows into model-ready ones, builds the model around a frozen base, and says what the loss of a row
is. Losses come as (sum, count) per row, never as a batch mean: the mean over a client's batch is
sum(sums) / sum(counts), and per-example privacy needs the rows apart.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.data.examples import Batch, Examples
from fedpeft.data.rows import Rows
from fedpeft.errors import ModelError
from fedpeft.machine.hardware import fast_bf16
from fedpeft.models import attention
from fedpeft.models.widened import widen
from fedpeft.parts import Family

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
"""Fine-tuning precisions: the frozen base and the activations. Adapters and heads are held in fp32 (fp64 for fp64)."""


def adapter_dtype(dtype: str) -> torch.dtype:
    """The dtype in which trainable parameters are held."""
    return torch.float64 if dtype == "fp64" else torch.float32


@dataclass(frozen=True)
class RowLosses:
    """Loss per row: `sums` (B,) and `counts` (B,): 1 for a class, the number of predicted tokens for language."""

    sums: Tensor
    counts: Tensor
    correct: Tensor
    """Correct predictions per row, (B,), out of `counts`."""


class Task(ABC):
    """One kind of prediction."""

    metric: str
    """What the headline number is called: "accuracy" or "perplexity"."""

    higher_is_better: bool

    @abstractmethod
    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Model-ready rows, cut to `max_tokens`."""

    @abstractmethod
    def model(self, base: nn.Module, classes: int | None) -> FederatedModel:
        """The trainable model around `base`."""

    @abstractmethod
    def base(self, model_directory: Path, dtype: torch.dtype, **options: Any) -> nn.Module:
        """The pretrained base model, in evaluation mode and frozen."""

    @abstractmethod
    def losses(self, logits: Tensor, batch: Batch) -> RowLosses:
        """Losses and correct predictions of a batch."""


class FederatedModel(nn.Module):
    """A base model (perhaps with an adapter in it) and, for classification, a head; maps a batch to logits."""

    base: nn.Module

    def forward(self, batch: Batch) -> Tensor:
        """Logits: (B, classes) or (B, T, vocabulary)."""
        raise NotImplementedError


PEFT_PREFIX = "base_model.model."
"""What the peft library puts before the names of the base model's modules."""


def canonical(name: str) -> str:
    """The canonical name of a parameter: independent of how the base is wrapped and what peft calls the adapter."""
    name = name.removeprefix("base.").removeprefix(PEFT_PREFIX)
    return name.replace(".default.", ".").removesuffix(".default").replace(".base_layer", "")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by canonical name, in the model's order."""
    return {canonical(name): p for name, p in model.named_parameters() if p.requires_grad}


def load_base(load: Callable[..., nn.Module], directory: Path, dtype: torch.dtype, **options: Any) -> nn.Module:
    """Load a base through a transformers Auto class, frozen and in evaluation mode.

    Raises:
        ModelError: the directory holds no model that this class can load.
    """
    if dtype == torch.bfloat16 and not torch.cuda.is_available():
        options.setdefault("attn_implementation", attention.register())
    try:
        base = load(str(directory), dtype=dtype, local_files_only=True, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"no model could be loaded from {directory}: {reason}") from error
    if dtype == torch.bfloat16 and not torch.cuda.is_available() and not fast_bf16("cpu"):
        widen(base)
    if "interpolate_pos_encoding" in inspect.signature(base.forward).parameters:
        base.register_forward_pre_hook(_interpolated, with_kwargs=True)
    return base.eval().requires_grad_(False)


def _interpolated(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Images are smaller than what a vision transformer was trained on (`fedpeft.data.images`), and so is its grid."""
    return given, {**named, "interpolate_pos_encoding": True}


TASKS: Family[Task] = Family("fedpeft.models.tasks", "task")
"""All tasks, by file name."""

"""Loading a base model: frozen, whole, and tried on a made-up row before anything is built on it.

transformers draws at random what a checkpoint lacks, anew at every load, and leaves out what it has no place for; both
are said in a log only. Here weights that the task uses must be there, and the rest is said in a sentence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedpeft.data.examples import Batch, make_up_batch
from fedpeft.data.model_config import describe_error
from fedpeft.errors import ModelError
from fedpeft.machine.hardware import has_fast_bf16
from fedpeft.models import attention
from fedpeft.models.conv1d import replace_conv1d
from fedpeft.models.kernels import widen
from fedpeft.models.t5_feedforward import replace_feedforward

Read = Callable[[nn.Module, Batch], Tensor]
"""What a task takes from a base, (B, T, width): of hidden states or logits."""

Say = Callable[[str], None]
"""Is told what a user should know of a checkpoint, a sentence a time."""

TRIED_TOKENS = 4
"""Tokens of the row that a base is tried on: loading the weights takes longer than so few."""

SHOWN = 4
"""Names of weights in a message, at most."""


def ignore_message(_: str) -> None:
    """For those who load a checkpoint again."""


def load_base(
    load: Callable[..., Any], directory: Path, dtype: torch.dtype, read: Read, say: Say = ignore_message, **options: Any
) -> nn.Module:
    """Load a base through a transformers Auto class, frozen and in evaluation mode.

    Weights that the checkpoint lacks and `read` does not reach become zero: equal runs have equal weights.

    Args:
        read: what is taken from it; must work on a made-up row.
        say: is told of weights that are missing or left out.

    Raises:
        ModelError: the directory holds no model that this class can load, weights that `read` uses are missing or of
            another shape, or `read` fails.
    """
    if dtype == torch.bfloat16 or torch.cuda.is_available():
        options.setdefault("attn_implementation", attention.register())
    try:
        base, report = _load_with_attention(load, directory, dtype, options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"FP4009 no model could be loaded from {directory}: {describe_error(error)}") from error
    replace_conv1d(base)
    replace_feedforward(base)
    if dtype == torch.bfloat16 and not torch.cuda.is_available() and not has_fast_bf16("cpu"):
        widen(base)
    if "pixel_values" in inspect.signature(base.forward).parameters:
        base.register_forward_pre_hook(_prepare_images, with_kwargs=True)
    base.eval().requires_grad_(False)
    _check_shapes(base, directory, report["mismatched_keys"])
    missing = sorted(report["missing_keys"])
    if used := _find_used_weights(base, directory, read, missing):
        raise ModelError(
            f"FP4029 the checkpoint in {directory} lacks {format_names(used)}, which {type(base).__name__} "
            f"needs here and "
            "would draw at random at every load; take a checkpoint that has them"
        )
    if missing:
        say(f"the checkpoint lacks {format_names(missing)}, which the task does not use")
    if left := sorted(report["unexpected_keys"]):
        say(f"{type(base).__name__} has no place for {format_names(left)} of the checkpoint: left out")
    return base  # type: ignore[no-any-return]


def _load_with_attention(load: Callable[..., Any], directory: Path, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """Model and report; with the attention that is asked for, or where a model has one of its own, with that."""
    given = {
        "dtype": dtype,
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are in the report, and refused by name
    }
    try:
        return load(str(directory), **given, **options)
    except (ValueError, KeyError) as error:  # Falcon looks the name up in a table of its own
        if "attn_implementation" not in options or not any(w in str(error) for w in ("attn_impl", attention.NAME)):
            raise
    return load(str(directory), **given, **{name: v for name, v in options.items() if name != "attn_implementation"})


def format_names(weights: Sequence[str]) -> str:
    """Names of weights, as many as a sentence bears."""
    shown = ", ".join(weights[:SHOWN])
    return shown if len(weights) <= SHOWN else f"{shown} and {len(weights) - SHOWN} other weights"


def _prepare_images(base: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Images in the model's precision; they are smaller than what it was trained on (`fedpeft.data.images`), and so is
    its grid of positions."""
    if isinstance(pixels := named.get("pixel_values"), Tensor):
        named = named | {"pixel_values": pixels.to(base.dtype)}
    if "interpolate_pos_encoding" in inspect.signature(base.forward).parameters:
        named = named | {"interpolate_pos_encoding": True}
    return given, named


def _check_shapes(base: nn.Module, directory: Path, mismatched: Collection[tuple[str, Any, Any]]) -> None:
    if not mismatched:
        return
    name, found, wanted = sorted(mismatched)[0]
    raise ModelError(
        f"FP4030 the checkpoint in {directory} does not fit its config.json: {name} is {tuple(found)}, and "
        f"{type(base).__name__} wants {tuple(wanted)} ({len(mismatched)} such weights); fetch or save it anew"
    )


@torch.enable_grad()
def _find_used_weights(base: nn.Module, directory: Path, read: Read, missing: Collection[str]) -> list[str]:
    """Those of the `missing` weights that `read` uses: a gradient reaches them. The others become zero."""
    drawn = {n: p for n, p in base.named_parameters(remove_duplicate=False) if n in missing}
    for parameter in drawn.values():
        parameter.requires_grad_(True)
    try:
        row = make_up_row(base)
        output = read(base, row)
    except Exception as error:  # whatever a model that was made for something else says
        if any(hasattr(base.config, of) for of in ("vision_config", "audio_config")):
            raise ModelError(
                f"FP4031 {type(base).__name__}, the model in {directory}, is one of texts with images or sounds, and "
                f"can't read rows as this task gives them ({describe_error(error)}); take a checkpoint of a "
                f"language model "
                "alone, or of a text encoder or vision transformer"
            ) from error
        _check_reads_rows(base, directory)
        other = "--dtype fp32, " if base.dtype == torch.bfloat16 else ""
        raise ModelError(
            f"FP4032 {type(base).__name__}, the model in {directory}, can't read rows as this task gives them, in "
            f"{str(base.dtype).removeprefix('torch.')} ({describe_error(error)}); take {other}a text encoder "
            f"such as minilm, a "
            "causal language model such as smollm2, or a vision transformer such as dinov2_small"
        ) from error
    _check_output(output, row, f"{type(base).__name__}, the model in {directory},")
    reached = set(missing) - set(drawn)  # buffers: nothing tells who reads them
    if output.requires_grad:
        gradients = torch.autograd.grad(output.sum(), list(drawn.values()), allow_unused=True)
        reached |= {name for name, gradient in zip(drawn, gradients, strict=True) if gradient is not None}
    for name, parameter in drawn.items():
        parameter.requires_grad_(False)
        if name not in reached:
            parameter.zero_()
    return sorted(reached)


def _check_reads_rows(base: nn.Module, directory: Path) -> None:
    """Refuse a model of neither texts nor images, such as Whisper, which no precision would help.

    Raises:
        ModelError: it is one.
    """
    wanted = getattr(base, "main_input_name", "input_ids")
    if wanted not in ("input_ids", "pixel_values"):
        raise ModelError(
            f"FP4083 {type(base).__name__}, the model in {directory}, reads {wanted}, and rows are texts or images; "
            "take a text encoder such as minilm, a causal language model such as smollm2, or a vision transformer "
            "such as dinov2_small"
        )


def _check_output(output: Any, row: Batch, who: str) -> None:
    """Refuse what is no vector of numbers for each token or patch of a row."""
    if not isinstance(output, Tensor) or output.ndim != 3:
        seen = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"FP4033 {who} gives no vector per token or patch, but {seen}; take a transformer")
    if "input_ids" in row and output.shape[1] != row["input_ids"].shape[1]:
        tokens = row["input_ids"].shape[1]
        raise ModelError(
            f"FP4034 {who} gives {output.shape[1]} vectors for {tokens} tokens; take one that gives one for each"
        )
    if output.isnan().any():
        raise ModelError(
            f"FP4035 {who} makes numbers of a row that are NaN in {str(output.dtype).removeprefix('torch.')}; its "
            "weights are damaged, or too large for that precision (--dtype fp32)"
        )


def make_up_row(base: nn.Module) -> Batch:
    """A made-up row: a few tokens, or a small image."""
    row = make_up_batch(base.config, 1, torch.Generator().manual_seed(0))
    if "input_ids" not in row:
        return {name: tensor.to(base.dtype) for name, tensor in row.items()}  # type: ignore[arg-type]
    return {name: tensor[:, :TRIED_TOKENS] for name, tensor in row.items()}


@torch.enable_grad()
def is_reading_ahead(base: Any, read: Read) -> bool:
    """Whether what `read` takes at the first token depends on later ones: a gradient leads to their embeddings."""
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        embedded.append(output.requires_grad_())

    hook = base.get_input_embeddings().register_forward_hook(keep)
    try:
        first = read(base, make_up_row(base))[:, 0]
    finally:
        hook.remove()
    [gradient] = torch.autograd.grad(first.square().sum(), embedded[:1])
    return bool(gradient.flatten(0, 1)[1:].any())  # of one row, (1, T, d); XLNet has (T, 1, d)

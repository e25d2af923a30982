"""Loading of a base model: frozen, complete, and tested on a made-up example.

transformers fills missing weights with random ones at every load, and drops weights that it has no place for. It only
logs both. Here weights that the task uses must exist, and the user is told about the others.
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
from fedpeft.data.rows import CLIP_AXES
from fedpeft.errors import ModelError
from fedpeft.machine.hardware import has_fast_bf16
from fedpeft.machine.startup import begin_collection
from fedpeft.models import attention
from fedpeft.models.conv1d import replace_conv1d
from fedpeft.models.kernels import widen
from fedpeft.models.t5_feedforward import replace_feedforward

Read = Callable[[nn.Module, Batch], Tensor]
"""A function from a base and a batch to the hidden states or logits that a task reads, (B, T, width)."""

TRIED_TOKENS = 4
"""Tokens of the example that a base is tested on; so few take less time than loading the weights."""

SHOWN = 4
"""Largest number of weights that a message names."""


def load_base(
    load: Callable[..., Any],
    directory: Path,
    dtype: torch.dtype,
    read: Read,
    say: Callable[[str], None],
    **options: Any,
) -> nn.Module:
    """Load a base through a transformers Auto class, frozen and in evaluation mode.

    Weights that the checkpoint lacks and `read` does not reach become zero, so that equal runs have equal weights.

    Args:
        load: `from_pretrained` of the Auto class.
        directory: the model's folder.
        dtype: dtype of the base.
        read: the task's reading of the base; it must work on a made-up example.
        say: called with sentences about weights that are missing or left out.
        **options: further arguments of `load`.

    Raises:
        ModelError: the directory holds no model that this class can load, weights that `read` uses are missing or of
            another shape, or `read` fails.
    """
    begin_collection()  # whatever loads a base has imported its libraries
    if dtype == torch.bfloat16 or torch.cuda.is_available():
        options.setdefault("attn_implementation", attention.register())
    try:
        base, report = _load_with_attention(load, directory, dtype, options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"FP4009 no model could be loaded from {directory}: {describe_error(error)}") from error
    if attention.has_soft_cap(base.config):
        base.set_attn_implementation("eager")
    replace_conv1d(base)
    replace_feedforward(base)
    if dtype == torch.bfloat16 and not torch.cuda.is_available() and not has_fast_bf16("cpu"):
        widen(base)
    if "pixel_values" in inspect.signature(base.forward).parameters:
        base.register_forward_pre_hook(_prepare_images, with_kwargs=True)
        base.register_forward_hook(_join_frames)
    base.eval().requires_grad_(False)
    _check_shapes(base, directory, report["mismatched_keys"])
    missing = sorted(report["missing_keys"])
    if used := _find_used_weights(base, directory, read, missing):
        raise ModelError(
            f"FP4029 the checkpoint in {directory} lacks {format_names(used)}, which {type(base).__name__} "
            "needs for this task and would draw at random at every load; choose a checkpoint that has them"
        )
    if missing:
        say(f"the checkpoint lacks {format_names(missing)}, which the task does not use")
    if left := sorted(report["unexpected_keys"]):
        say(f"the checkpoint has {format_names(left)}, which {type(base).__name__} does not use")
    return base  # type: ignore[no-any-return]


def _load_with_attention(load: Callable[..., Any], directory: Path, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """Load model and report, with the requested attention, or with the model's own if it supports no other."""
    given = {
        "dtype": dtype,
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # the report lists them, and they are refused by name
    }
    try:
        return load(str(directory), **given, **options)
    except (ValueError, KeyError) as error:  # Falcon has its own table of attention functions
        if "attn_implementation" not in options or not any(w in str(error) for w in ("attn_impl", attention.NAME)):
            raise
    return load(str(directory), **given, **{name: v for name, v in options.items() if name != "attn_implementation"})


def format_names(weights: Sequence[str]) -> str:
    """Return the names of weights for a message, at most `SHOWN` of them."""
    shown = ", ".join(weights[:SHOWN])
    return shown if len(weights) <= SHOWN else f"{shown} and {len(weights) - SHOWN} other weights"


def _prepare_images(base: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Convert images to the model's precision, and let it interpolate its grid of positions.

    Images are smaller than those that the model was trained on (`fedpeft.data.images`), and so is their grid. The
    frames of clips (B, frames, channels, height, width) become images.
    """
    pixels = named.get("pixel_values")
    base.frames_per_clip = pixels.shape[1] if isinstance(pixels, Tensor) and pixels.ndim == CLIP_AXES else 1
    if isinstance(pixels, Tensor):
        pixels = pixels.flatten(0, 1) if pixels.ndim == CLIP_AXES else pixels
        named = named | {"pixel_values": pixels.to(base.dtype)}
    if "interpolate_pos_encoding" in inspect.signature(base.forward).parameters:
        named = named | {"interpolate_pos_encoding": True}
    return given, named


def _join_frames(base: Any, _: tuple[Any, ...], output: Any) -> Any:
    """Make one sequence of the hidden states of a clip's frames: (B * frames, T, d) becomes (B, frames * T, d)."""
    frames = getattr(base, "frames_per_clip", 1)
    if frames > 1 and "last_hidden_state" in output:
        hidden = output["last_hidden_state"]
        output["last_hidden_state"] = hidden.reshape(hidden.shape[0] // frames, -1, hidden.shape[-1])
    return output


def _check_shapes(base: nn.Module, directory: Path, mismatched: Collection[tuple[str, Any, Any]]) -> None:
    if not mismatched:
        return
    name, shape, wanted = sorted(mismatched)[0]
    raise ModelError(
        f"FP4030 the checkpoint in {directory} does not fit its config.json: {name} is {tuple(shape)}, and "
        f"{type(base).__name__} needs {tuple(wanted)} ({len(mismatched)} such weights); fetch or save it again"
    )


@torch.enable_grad()
def _find_used_weights(base: nn.Module, directory: Path, read: Read, missing: Collection[str]) -> list[str]:
    """Return those of the `missing` weights that `read` uses, as a gradient reaches them; set the others to zero."""
    drawn = {n: p for n, p in base.named_parameters(remove_duplicate=False) if n in missing}
    for parameter in drawn.values():
        parameter.requires_grad_(True)
    try:
        row = make_up_row(base)
        output = read(base, row)
    except Exception as error:  # models for other purposes raise many types
        if any(hasattr(base.config, of) for of in ("vision_config", "audio_config")):
            raise ModelError(
                f"FP4031 {type(base).__name__}, the model in {directory}, reads texts with images or sounds and "
                f"can't read the examples of this task ({describe_error(error)}); choose a language model, a "
                "text encoder or a vision transformer"
            ) from error
        _check_reads_rows(base, directory)
        other = "--dtype fp32, " if base.dtype == torch.bfloat16 else ""
        raise ModelError(
            f"FP4032 {type(base).__name__}, the model in {directory}, can't read the examples of this task in "
            f"{str(base.dtype).removeprefix('torch.')} ({describe_error(error)}); take {other}a text encoder such as "
            "minilm, a causal language model such as smollm2, or a vision transformer such as dinov2_small"
        ) from error
    _check_output(output, row, f"{type(base).__name__}, the model in {directory},")
    reached = set(missing) - set(drawn)  # buffers have no gradients, so they count as used
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
        ModelError: the model is of that kind.
    """
    wanted = getattr(base, "main_input_name", "input_ids")
    if wanted not in ("input_ids", "pixel_values"):
        raise ModelError(
            f"FP4083 {type(base).__name__}, the model in {directory}, reads {wanted}, and examples are texts or "
            "images; choose a text encoder such as minilm, a causal language model such as smollm2, or a "
            "vision transformer such as dinov2_small"
        )


def _check_output(output: Any, row: Batch, who: str) -> None:
    """Refuse output that is not a finite vector for each token or patch of an example."""
    if not isinstance(output, Tensor) or output.ndim != 3:
        seen = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"FP4033 {who} returns {seen} instead of a vector per token or patch; choose a transformer")
    if "input_ids" in row and output.shape[1] != row["input_ids"].shape[1]:
        tokens = row["input_ids"].shape[1]
        raise ModelError(
            f"FP4034 {who} returns {output.shape[1]} vectors for {tokens} tokens; choose one that returns one for each"
        )
    if output.isnan().any():
        raise ModelError(
            f"FP4035 {who} returns NaN in {str(output.dtype).removeprefix('torch.')}; its weights are damaged, or too "
            "large for that precision: try --dtype fp32"
        )


def make_up_row(base: nn.Module) -> Batch:
    """Create a made-up example: a few tokens, or a small image."""
    row = make_up_batch(base.config, 1, torch.Generator().manual_seed(0))
    if "input_ids" not in row:
        return {name: tensor.to(base.dtype) for name, tensor in row.items()}  # type: ignore[arg-type]
    return {name: tensor[:, :TRIED_TOKENS] for name, tensor in row.items()}


@torch.enable_grad()
def is_reading_ahead(base: Any, read: Read) -> bool:
    """Return whether the output of `read` at the first token depends on later ones.

    It does if a gradient reaches their embeddings.
    """
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

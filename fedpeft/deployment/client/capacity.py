"""What an edge machine can hold: the precision of the frozen base and the examples per local step, by free memory.

The estimate is computed from the model's files and is cautious. Loading needs all weights in the run's precision.
Training needs the weights as they are held, and what a step keeps for its backward pass in every block,

    row = blocks (tokens (16 hidden + 4 intermediate) + 2 heads tokens^2) + 3 tokens vocabulary   (numbers; the last
          for language models only)

The run's own settings stay if they fit. Otherwise fewer examples per step are tried first, down to a quarter of them;
then int8 weights, then nf4. The last resort is nf4 with a single example.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fedpeft.data.datasets.clients import LANGUAGE
from fedpeft.data.images import count_patches, get_vision_config
from fedpeft.data.model_config import load_model_config
from fedpeft.deployment.options import EdgeOptions
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import ModelError, RunError
from fedpeft.machine.files import check_regular_file
from fedpeft.machine.hardware import get_free_memory, has_fast_bf16, list_accelerators
from fedpeft.models.abilities import count_extra_tokens
from fedpeft.models.base_model import resolve_model
from fedpeft.models.two_towers import find_tower_folders
from fedpeft.parts.families import TASKS
from fedpeft.reporting.observer import RunObserver
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import RunSpec

WEIGHT_BYTES = {"fp64": 8.0, "fp32": 4.0, "bf16": 2.0, "int8": 1.01, "nf4": 0.53}
"""Bytes per weight, scales included."""

INNER = ("intermediate_size", "n_inner", "d_ff", "encoder_ffn_dim", "ffn_dim", "hidden_dim")
"""Names of the width inside feed-forward sublayers; if a model has none of them, 4 times the hidden width."""

DECODER_BLOCKS = ("num_decoder_layers", "decoder_layers")
"""Names of the number of blocks of the decoder beside an encoder, in T5 and BART."""

IN_A_BLOCK = re.compile(r"(?:^|\.)\d+\.")
"""Pattern of the names of weights inside numbered blocks."""

IMAGES = "vision_model."
"""Prefix of the names of the image tower, which is loaded alone."""

DECODER = re.compile(r"(?:model\.)?decoder\.|lm_head\.")
"""Names of weights that an encoder-decoder has beside its encoder."""

RESERVE = 0.1
"""Share of the free memory that is left alone."""


@dataclass(frozen=True)
class ModelSize:
    """Size of a base model: numbers in linear layers inside blocks, all other numbers, and the shapes of its layers.

    Attributes:
        dropped: numbers that are loaded and then dropped: the decoder of T5 and BART (`fedpeft.models.encoders`).
    """

    linear: int
    other: int
    hidden: int
    intermediate: int
    blocks: int
    heads: int
    vocabulary: int
    dropped: int = 0

    @classmethod
    def from_folder(cls, folder: Path, answers: bool = False) -> ModelSize:
        """Return the size of the model in `folder`, from config.json and the headers of its weights.

        If the model has two towers, the image tower counts.

        Args:
            folder: folder of the model.
            answers: whether the task uses both parts of an encoder with a decoder.

        Raises:
            ModelError: the files can't be read.
        """
        try:
            whole = load_model_config(folder)
            config = get_vision_config(whole)
            shapes = read_shapes(folder)
            hidden = int(config.hidden_size)
            made = {
                "hidden": hidden,
                "intermediate": _read_first(config, INNER, 4 * hidden),
                "blocks": int(config.num_hidden_layers) + (_read_first(config, DECODER_BLOCKS, 0) if answers else 0),
                "heads": int(config.num_attention_heads),
                "vocabulary": _read_first(config, ("vocab_size",), 0),
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ModelError(f"FP4013 the size of the model in {folder} can't be read: {error}") from error
        numbers = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        if config is not whole:
            numbers = {name: n for name, n in numbers.items() if name.startswith(IMAGES)} or numbers
        kept = numbers
        if getattr(config, "is_encoder_decoder", False) and not answers:
            kept = {name: n for name, n in numbers.items() if not DECODER.match(name)}
        linear = sum(n for name, n in kept.items() if len(shapes[name]) == 2 and IN_A_BLOCK.search(name))
        return cls(linear, sum(kept.values()) - linear, **made, dropped=sum(numbers.values()) - sum(kept.values()))

    def count_row_numbers(self, tokens: int, language: bool) -> int:
        """Return the numbers that a step keeps for each of its examples."""
        block = tokens * (16 * self.hidden + 4 * self.intermediate) + 2 * self.heads * tokens**2
        return self.blocks * block + (3 * tokens * self.vocabulary if language else 0)

    def estimate_memory(self, dtype: str, precision: str, batch_size: int, tokens: int, language: bool) -> float:
        """Return the bytes for loading in `dtype`, and for training on a base in `precision` (empty: `dtype`)."""
        width = WEIGHT_BYTES[dtype]
        loading = (self.linear + self.other + self.dropped) * width
        held = self.linear * WEIGHT_BYTES[precision or dtype] + self.other * width
        return max(loading, held + batch_size * self.count_row_numbers(tokens, language) * width)


def read_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of a model's weights by name, from the headers of its files.

    Raises:
        OSError, SafetensorError: a file can't be read.
    """
    shapes: dict[str, list[int]] = {}
    for weights in sorted(folder.glob("*.safetensors")):
        with safe_open(check_regular_file(weights), framework="pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def _read_first(config: Any, names: Sequence[str], default: int) -> int:
    """Return the first number in a model's configuration under one of `names`, or else the `default`."""
    return int(next(filter(None, (getattr(config, name, None) for name in names)), default))


@dataclass(frozen=True)
class TrainingChoice:
    """How a client trains.

    Attributes:
        precision: of the base; empty: the run's dtype.
        batch_size: examples per local step.
        need: estimated bytes.
        fits: whether that much memory is free.
    """

    precision: str
    batch_size: int
    need: float
    fits: bool

    def describe(self, config: RunConfig, dtype: str, free: float, device: str) -> str:
        """Return a line for the console about what differs from the run's settings `config`; empty: nothing does.

        `dtype` is the data type on `device`, which has `free` bytes of memory.
        """
        precision = self.precision or dtype
        if not self.fits:
            return (
                f"[bold yellow]warning[/] {free / 1e9:.1f} GB of memory are free on {device}, and this model "
                f"needs about {self.need / 1e9:.1f}, even with {precision} and {self.batch_size} examples per step"
            )
        if self.precision or self.batch_size < config.batch_size:
            return (
                f"[bold]memory[/]  {free / 1e9:.1f} GB are free on {device}: a base in {precision}, "
                f"{self.batch_size} examples per step"
            )
        if dtype != config.dtype:
            return f"[bold]precision[/]  {device} has no bf16 arithmetic: a base in fp32"
        return ""


def choose(
    size: ModelSize,
    free: float,
    dtype: str,
    batch_size: int,
    tokens: int,
    language: bool,
    few_bits: tuple[str, ...],
    whole: bool = False,
) -> TrainingChoice:
    """Return the first choice, from the run's own settings downward, that fits into `free` bytes, or the last one.

    Args:
        size: size of the base model.
        free: bytes of memory on the device.
        dtype: the run's data type.
        batch_size: the run's examples per local step.
        tokens: the run's tokens per example.
        language: whether the task is language modeling.
        few_bits: those of int8 and nf4 that may be used, in this order.
        whole: whether the client must keep `batch_size`.
    """
    room = (1 - RESERVE) * free
    halves = [batch_size if whole else max(1, batch_size >> i) for i in range(batch_size.bit_length())]
    ladder = [("", rows) for rows in halves if rows * 4 >= batch_size]
    ladder += [(precision, rows) for precision in few_bits for rows in halves if rows * 4 >= batch_size]
    ladder.append(((few_bits or ("",))[-1], batch_size if whole else 1))
    for precision, rows in ladder:
        need = size.estimate_memory(dtype, precision, rows, tokens, language)
        if need <= room:
            return TrainingChoice(precision, rows, need, True)
    return TrainingChoice(precision, rows, need, False)


def parse_device(text: str) -> str:
    """Return the device that `--device` names: cpu, or cuda:N.

    Raises:
        RunError: this machine has no such device.
    """
    gpus = list_accelerators()
    if text == "auto":
        return next(iter(gpus), "cpu")
    if text in gpus or (text == "cuda" and gpus):
        return text
    with suppress(RuntimeError):
        kind = torch.device(text).type
        if kind == "cpu":
            return "cpu"
        if kind == "cuda":
            raise RunError(f"FP5019 there is no {text} here; use --device {next(iter(gpus), 'cpu')}")
    raise RunError(f"FP5020 there is no device {text!r}; legal: cpu, {', '.join(gpus) or 'cuda:N'}")


def has_common_batch_size(spec: RunSpec) -> bool:
    """Return whether all clients must have the same batch size, because privacy divides by it."""
    sampling = None if spec.mechanism is None else spec.mechanism.example_sampling
    return sampling is not None and sampling.divides_alike


def _measure_example(folder: Path, told: v2.Description) -> tuple[ModelSize, int]:
    """Return the size of the model that a step runs, and the tokens of an example."""
    learns = told.task.partition("(")[0]
    patches = count_patches(told.side, folder)[0] ** 2 + 1 if told.side else 0
    if learns not in ("towers", "captions"):
        tokens = patches * max(1, told.frames) or told.tokens
        return ModelSize.from_folder(folder, learns == "seq2seq"), tokens * (2 if learns == "dpo" else 1)
    folders = find_tower_folders(folder)
    text = ModelSize.from_folder(folders["text"])
    if learns == "captions":  # the encoder runs once, before any step
        return text, count_extra_tokens(TASKS.build(told.task)) + told.tokens
    image = ModelSize.from_folder(folders["image"])
    both = dataclasses.replace(image, linear=image.linear + text.linear, other=image.other + text.other)
    return both, patches + told.tokens


def fit_to_memory(
    options: EdgeOptions, spec: RunSpec, told: v2.Description, device: str, observer: RunObserver
) -> EdgeOptions:
    """Return the options, with what they leave open chosen by the free memory of `device`.

    Args:
        options: the client's own choices.
        spec: what the client takes of the server's settings, with its choices.
        told: what the server describes, checked.
        device: "cpu" or "cuda:N".
        observer: receives messages about the choices.

    Raises:
        FedpeftError: the model is not on this machine.
    """
    config = spec.config
    if options.precision or config.dtype == "fp64":
        return options
    fills = spec.strategy.fills_base  # a dense R saves nothing
    nf4 = ("nf4",) if importlib.util.find_spec("bitsandbytes") else ()
    folder, learns = resolve_model(config.model), told.task.partition("(")[0]
    size, tokens = _measure_example(folder, told)
    language = learns in ("seq2seq", "captions", *LANGUAGE)
    free = get_free_memory(device)
    few_bits = ("int8", *nf4) if spec.method is not None and spec.method.few_bits and not fills else ()
    slow = config.dtype == "bf16" and not has_fast_bf16(device)
    dtype = "fp32" if slow else config.dtype
    choice = choose(size, free, dtype, config.batch_size, tokens, language, few_bits, has_common_batch_size(spec))
    precision = choice.precision or ("fp32" if slow else "")
    if line := choice.describe(config, dtype, free, device):
        observer.say(line)
    rows = options.batch_size or (choice.batch_size if choice.batch_size < config.batch_size else 0)
    return dataclasses.replace(options, precision=precision, batch_size=rows)

"""A finished run as a model to use: its base, its adapter, and its answers."""

from __future__ import annotations

import copy
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedpeft.data.abilities import ReadsClips
from fedpeft.data.clip_folders import read_clips
from fedpeft.data.examples import Batch, ImageRows, make_up_batch
from fedpeft.data.image_folders import read_pixels
from fedpeft.data.images import convert_images, get_size, get_vision_config
from fedpeft.data.model_config import load_model_config
from fedpeft.data.rows import Dataset, Source, get_template, load_source
from fedpeft.errors import FedpeftError, RunError
from fedpeft.machine import files
from fedpeft.models.abilities import ComparesExamples, DescribesImages, count_extra_tokens
from fedpeft.models.base_model import Origin, count_readable_tokens, get_origin, resolve_model
from fedpeft.models.quantized_base import quantize
from fedpeft.models.task import FederatedModel, Task
from fedpeft.parts.families import DATASETS, PEFT_METHODS, TASKS
from fedpeft.peft import saved_adapter
from fedpeft.peft.method import PeftMethod
from fedpeft.reporting.run_folder import describe_unfinished, resume_command
from fedpeft.reporting.user_files import find_changed_file, find_own_files, load_record
from fedpeft.wiring.config import RunConfig, read_config


@dataclass(frozen=True)
class FinishedRun:
    """A folder that `fedpeft simulate` has finished.

    Attributes:
        folder: holds config.toml, summary.json, and adapter/ or model/.
        config: the run's settings.
        summary: its results.
    """

    folder: Path
    config: RunConfig
    summary: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Read the run in `folder`.

        Raises:
            RunError: there is no run, or it has not finished.
        """
        if not (folder / "config.toml").is_file():
            raise RunError(
                f"FP5135 {folder} holds no run: there is no config.toml in it; give a run's folder, runs/NAME"
            )
        config = read_config(folder / "config.toml", goes_on=False, of_run=True)
        try:
            summary = files.read_json(folder / "summary.json")
        except FileNotFoundError:
            raise RunError(describe_unfinished(folder)) from None
        except (OSError, ValueError):
            summary = None
        if not isinstance(summary, dict) or not isinstance(summary.get("task"), str):
            raise RunError(f"FP5168 {folder}/summary.json is damaged; {resume_command(folder)} writes it again")
        return cls(folder, config, summary)

    @cached_property
    def dataset(self) -> Source:
        """The dataset; nothing is read."""
        return DATASETS.build(self.config.dataset)

    @cached_property
    def method(self) -> PeftMethod:
        """The PEFT method."""
        return PEFT_METHODS.build(self.config.peft)

    @cached_property
    def task(self) -> Task:
        """The task of the model."""
        return TASKS.build(self.summary["task"])

    def load_dataset(self) -> Dataset:
        """Read the examples of the dataset.

        Raises:
            FedpeftError: they are gone, or can't be used.
        """
        return load_source(self.dataset, self.config.dataset)

    @property
    def temperature(self) -> float:
        """The divisor of the model's logits that calibrates them; 1 if the run has not measured it."""
        found = self.summary.get("temperature")
        return float(found) if isinstance(found, int | float) and 0 < found <= sys.float_info.max else 1.0

    @cached_property
    def template(self) -> str | None:
        """The template of prompts for examples that are questions with answers; None: the model's chat template.

        A run of an earlier version has no record of a template in its dataset; then it comes from the dataset, if
        that still exists.
        """
        with suppress(FedpeftError):
            if named := get_template(self.dataset):
                return named
            if "template" not in self.summary and (self.task.asks or self.task.translates):
                return self.load_dataset().template
        found = self.summary.get("template")
        return found if isinstance(found, str) else None

    @property
    def files(self) -> Path:
        """The folder of the adapter, or of the whole model."""
        return self.folder / ("model" if self.method.whole_model else "adapter")

    @cached_property
    def labels(self) -> list[str] | None:
        """Names of the classes or labels, or of the number; None for language models.

        Raises:
            RunError: the file with the names is missing or damaged.
        """
        file = self.files / "labels.json"
        try:
            names = files.read_json(file)
        except FileNotFoundError as error:
            if self.task.targets:
                raise RunError(
                    f"FP5169 {file} is missing; it contains the names of the classes, so restore it"
                ) from error
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"FP5100 {file} can't be read: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RunError(f"FP5170 {file} is damaged: it must hold the names of the classes, in a list")
        return names

    @property
    def has_part_labels(self) -> bool:
        """Whether the model labels each word of a text or each patch of an image."""
        return self.labels is not None and not self.task.targets

    @cached_property
    def model_name(self) -> str:
        """The base model in the configuration, or the dataset's own."""
        return self.load_dataset().default_model if self.config.model == "auto" else self.config.model

    @cached_property
    def model_directory(self) -> Path:
        """Folder of the base model."""
        return resolve_model(self.model_name)

    @property
    def base_directory(self) -> Path:
        """Folder of the model that holds the adapter: the language model of a captioner, else the base model."""
        return self.model_directory / "text" if isinstance(self.task, DescribesImages) else self.model_directory

    @property
    def origin(self) -> Origin:
        """The public facts about the base model."""
        return get_origin(self.model_name)

    @cached_property
    def is_image_model(self) -> bool:
        """Whether examples are images."""
        config = load_model_config(self.model_directory)
        return not hasattr(config, "vocab_size") or hasattr(config, "patch_size")  # BEiT has a vocabulary of patches

    @property
    def can_take_pictures(self) -> bool:
        """Whether a picture's file is its input: it classifies images, or captions them."""
        return isinstance(self.task, DescribesImages) or self.is_image_model

    @cached_property
    def picture_side(self) -> int:
        """Pixels per side to which the run resized its pictures before the model saw them.

        Raises:
            FedpeftError: the dataset has no such setting, and can't be loaded.
        """
        said = getattr(self.dataset, "side", None)
        return said if isinstance(said, int) else get_size(np.asarray(self.load_dataset().test.inputs))[0]

    @property
    def frames(self) -> int:
        """Number of frames of the clips that the run reads; 0: it reads images or texts."""
        return self.dataset.count_frames() if isinstance(self.dataset, ReadsClips) else 0

    def load_pictures(self, files: list[str]) -> ImageRows:
        """Load pictures of files, or clips of folders, as the run's model received them; labels are zeros.

        Raises:
            DataError: a file is not a readable picture; the message names it.
        """
        side = self.picture_side
        read = read_clips(files, side, self.frames) if self.frames else read_pixels(files, side)
        pixels, tokens = convert_images(read, self.model_directory)
        return ImageRows(pixels, np.zeros(len(files), np.int64), tokens)

    @property
    def tokens(self) -> int:
        """The number of tokens to which texts are truncated, as in training."""
        asked, before = self.config.tokens, self.method.extra_tokens + count_extra_tokens(self.task)
        return min(asked, count_readable_tokens(self.model_directory, before, asked))

    def check_answers(self) -> None:
        """Reject a run whose model has no answer to a single example.

        Raises:
            RunError: it finds pairs.
        """
        if isinstance(self.task, ComparesExamples):
            raise RunError(
                f"FP5171 {self.folder} is a model for pairs, which returns vectors instead of classes or texts; "
                "load it with fedpeft.open_run(FOLDER).model(), and compare both sides of a batch"
            )

    def check_unchanged(self, rows: bool) -> list[str]:
        """Reject a run whose base model, or with `rows` its dataset, has changed since.

        Returns:
            Notes for the user if there is no record to compare with.

        Raises:
            RunError: it has changed.
        """
        config = RunConfig(dataset=self.config.dataset, model=self.config.model)  # no other setting is read again
        was, now = load_record(self.folder), find_own_files(config)
        now = now if rows else now[:1]
        if (name := find_changed_file(was[:1], now)) is not None:
            raise RunError(
                f"FP5172 the base model {name} has changed since {self.folder} was trained on it; restore it"
            )
        if (name := find_changed_file(was, now)) is not None:
            raise RunError(
                f"FP5173 {name} has changed since {self.folder} was trained on it, so examples held out now may "
                "have been used for training; restore the file, or predict examples of your own: "
                f"fedpeft predict {self.folder} --data FILE"
            )
        own = [own.file for own in now if own.sha256]
        if was or not own:
            return []
        return [f"the run has no record of {own[-1]}: its present content is assumed to be that of the training"]

    def check_rows(self) -> None:
        """Reject a run whose model does not give one answer per example.

        Raises:
            RunError: it finds pairs, or labels words.
        """
        self.check_answers()
        if self.frames:
            raise RunError(
                f"FP5455 {self.folder} reads clips of {self.frames} frames, and a merged folder reads single images; "
                "load it with fedpeft.open_run(FOLDER).model(), or export the adapter with the head, without --merge"
            )
        if self.has_part_labels:
            raise RunError(
                f"FP5174 {self.folder} labels words or patches: its head answers once for each, and not for a whole "
                "example; load it with fedpeft.open_run(FOLDER).model(), or export the adapter with the head, without "
                "--merge"
            )

    def check_reads_texts(self, what: str) -> None:
        """Reject a run whose model captions images, for a command `what` that needs texts.

        Raises:
            RunError: the model captions images.
        """
        if isinstance(self.task, DescribesImages):
            raise RunError(
                f"FP5175 {self.folder} captions images: its language model reads them through a connector, "
                f"which {what} does not use; use fedpeft predict RUN IMAGE, or export the adapter "
                "with the connector"
            )

    @property
    def base_key(self) -> tuple[Path, str, str]:
        """A key that is equal for runs that can share one loaded base."""
        method = self.method
        own = str(self.folder) if method.whole_model else ""
        return self.model_directory, method.base_precision, own

    def base(self) -> nn.Module:
        """Load the base in fp32, without adapter."""
        base = self.task.base(self.model_directory, torch.float32)
        quantize(base, self.method.base_precision)
        return base

    def model(self, base: nn.Module) -> FederatedModel:
        """Load the finished model, on its own tree of modules that shares the weights of `base`.

        Raises:
            RunError: the folder has no finished run.
        """
        if not self.files.is_dir():
            raise RunError(f"FP5132 {self.folder} holds no finished run: there is no {self.files.name}/ in it")
        return saved_adapter.load(self.folder, self.task, clone_modules(base), len(self.labels or ()))


def clone_modules(module: nn.Module, known: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """Copy a tree of modules with the same parameters, so that an adapter in the copy does not change `module`.

    A module that occurs in several places occurs as one in the copy, too.

    Args:
        module: the root of the tree.
        known: the copies made so far.
    """
    known = {} if known is None else known
    if module in known:
        return known[module]
    made = known[module] = copy.copy(module)
    made._parameters = dict(module._parameters)
    made._buffers = dict(module._buffers)
    made._modules = {
        name: child if child is None else clone_modules(child, known) for name, child in module._modules.items()
    }
    return made


def sample_batch(model_directory: Path) -> Batch:
    """Return four made-up examples that the model can read, to compare models with."""
    return make_up_batch(get_vision_config(load_model_config(model_directory)), 4, torch.Generator().manual_seed(0))

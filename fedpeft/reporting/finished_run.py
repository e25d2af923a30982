"""A run's folder as a model to use: which base, which adapter, what it answers."""

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

from fedpeft.config import RunConfig, read_config
from fedpeft.data.examples import Batch, ImageRows, make_up_batch
from fedpeft.data.image_folders import read_pixels
from fedpeft.data.images import convert_images, get_vision_config
from fedpeft.data.model_config import load_model_config
from fedpeft.data.rows import DATASETS, get_template, load_dataset
from fedpeft.errors import FedpeftError, RunError
from fedpeft.machine import files
from fedpeft.models.base_model import Origin, count_readable_tokens, get_origin, resolve_model
from fedpeft.models.quantized import quantize
from fedpeft.models.task import TASKS, FederatedModel, Task
from fedpeft.peft import saved_adapter
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.peft.method import PeftMethod
from fedpeft.reporting.run_folder import describe_unfinished, resume_command
from fedpeft.reporting.user_files import find_changed_file, find_own_files, load_record


@dataclass(frozen=True)
class FinishedRun:
    """A folder that `python -m fedpeft.simulate` has finished.

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
        """The run in `folder`.

        Raises:
            RunError: there is none, or it has not been finished.
        """
        if not (folder / "config.toml").is_file():
            raise RunError(f"FP5135 {folder} holds no run: there is no config.toml in it")
        config = read_config(folder / "config.toml", goes_on=False, of_run=True)
        try:
            summary = files.read_json(folder / "summary.json")
        except FileNotFoundError:
            raise RunError(describe_unfinished(folder)) from None
        except (OSError, ValueError):
            summary = None
        if not isinstance(summary, dict) or not isinstance(summary.get("task"), str):
            raise RunError(f"FP5168 {folder}/summary.json is damaged; {resume_command(folder)} writes it anew")
        return cls(folder, config, summary)

    @property
    def method(self) -> PeftMethod:
        """The PEFT method."""
        return PEFT_METHODS.build(self.config.peft)

    @cached_property
    def task(self) -> Task:
        """What the model was asked to do."""
        return TASKS.build(self.summary["task"])

    @property
    def temperature(self) -> float:
        """What the model's logits are divided by to be calibrated; 1 where the run has not found out."""
        found = self.summary.get("temperature")
        return float(found) if isinstance(found, int | float) and 0 < found <= sys.float_info.max else 1.0

    @cached_property
    def template(self) -> str | None:
        """Of prompts, in which the rows that are questions with answers were put; None: the model's chat template.

        A run of an earlier version has not noted what its rows told by their columns; they do, if they are there.
        """
        with suppress(FedpeftError):
            if named := get_template(self.config.dataset):
                return named
            if "template" not in self.summary and (self.task.asks or self.task.translates):
                return load_dataset(self.config.dataset).template
        found = self.summary.get("template")
        return found if isinstance(found, str) else None

    @property
    def files(self) -> Path:
        """Where the adapter is, or the whole model."""
        return self.folder / ("model" if self.method.whole_model else "adapter")

    @cached_property
    def labels(self) -> list[str] | None:
        """Names of the classes or labels, or what the number is called; None for language models."""
        file = self.files / "labels.json"
        try:
            names = files.read_json(file)
        except FileNotFoundError as error:
            if self.task.targets:
                raise RunError(f"FP5169 {file} is missing: the names of the classes are in it; put it back") from error
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"FP5100 {file} can't be read: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RunError(f"FP5170 {file} is damaged: it must hold the names of the classes, in a list")
        return names

    @property
    def has_word_labels(self) -> bool:
        """Whether the model labels each word of a row."""
        return self.labels is not None and not self.task.targets

    @cached_property
    def model_name(self) -> str:
        """What the configuration calls the base model, or the data set's own."""
        return load_dataset(self.config.dataset).default_model if self.config.model == "auto" else self.config.model

    @cached_property
    def model_directory(self) -> Path:
        """Folder of the base model."""
        return resolve_model(self.model_name)

    @property
    def base_directory(self) -> Path:
        """Folder of what the adapter is put into: of towers the language model, where there is one before images."""
        return self.model_directory / "text" if self.task.describes else self.model_directory

    @property
    def origin(self) -> Origin:
        """What others may know of the base model."""
        return get_origin(self.model_name)

    @cached_property
    def is_image_model(self) -> bool:
        """Whether rows are images."""
        config = load_model_config(self.model_directory)
        return not hasattr(config, "vocab_size") or hasattr(config, "patch_size")  # BEiT has a vocabulary, of patches

    @property
    def can_take_pictures(self) -> bool:
        """Whether it is asked by the file of a picture: it finds something in images, or says what they show."""
        return self.task.describes or self.is_image_model

    @cached_property
    def picture_side(self) -> int:
        """Pixels per side that the run's pictures were brought to before the model saw them.

        Raises:
            FedpeftError: the data set says nothing of it, and can't be loaded.
        """
        said = getattr(DATASETS.build(self.config.dataset), "side", None)
        return said if isinstance(said, int) else int(load_dataset(self.config.dataset).test.inputs.shape[1])  # type: ignore[union-attr]

    def load_pictures(self, files: list[str]) -> ImageRows:
        """Pictures of files as the run's model was fed in training; labels are zeros.

        Raises:
            DataError: a file is no picture that can be read; it is named.
        """
        pixels, tokens = convert_images(read_pixels(files, self.picture_side), self.model_directory)
        return ImageRows(pixels, np.zeros(len(files), np.int64), tokens)

    @property
    def tokens(self) -> int:
        """Texts are cut to this many tokens, as they were in training."""
        asked, before = self.config.tokens, self.method.extra_tokens + self.task.extra_tokens
        return min(asked, count_readable_tokens(self.model_directory, before, asked))

    def check_answers(self) -> None:
        """Refuse a run whose model has no answer to a row.

        Raises:
            RunError: it finds pairs.
        """
        if self.task.compares:
            raise RunError(
                f"FP5171 {self.folder} finds pairs: its model gives vectors, no class and no text; load it with "
                "fedpeft.open_run(FOLDER).model(), and compare both sides of a batch"
            )

    def check_unchanged(self, rows: bool) -> list[str]:
        """Refuse a run whose base model, or with `rows` its data set, is another now; what is to be said where nobody
        knows.

        Raises:
            RunError: it is another.
        """
        config = RunConfig(dataset=self.config.dataset, model=self.config.model)  # of it, nothing else is read again
        was, now = load_record(self.folder), find_own_files(config)
        now = now if rows else now[:1]
        if (name := find_changed_file(was[:1], now)) is not None:
            raise RunError(
                f"FP5172 the base model {name} has changed since {self.folder} was trained on it; put it back"
            )
        if (name := find_changed_file(was, now)) is not None:
            raise RunError(
                f"FP5173 {name} has changed since {self.folder} was made of it, so that rows held out now may be some "
                "that it was trained on; put the file back, or let the run answer rows of your own: python -m "
                f"fedpeft.predict {self.folder} --data FILE"
            )
        own = [own.file for own in now if own.sha256]
        if was or not own:
            return []
        return [f"nobody knows what was in {own[-1]} when the run was made of it: it is taken to be what is there now"]

    def check_rows(self) -> None:
        """Refuse a run whose model does not answer once for a row.

        Raises:
            RunError: it finds pairs, or labels words.
        """
        self.check_answers()
        if self.has_word_labels:
            raise RunError(
                f"FP5174 {self.folder} labels words: its head answers for each token, and a row has no answer of its "
                "own; load it with fedpeft.open_run(FOLDER).model(), or export the adapter with the head, without "
                "--merge"
            )

    def check_reads_texts(self, what: str) -> None:
        """Refuse a run whose model says something of images alone, for `what`, which is of texts.

        Raises:
            RunError: it does.
        """
        if self.task.describes:
            raise RunError(
                f"FP5175 {self.folder} captions images: its language model reads them through a connector, and {what} "
                "does without; take python -m fedpeft.predict RUN PICTURE, or export the adapter with the connector"
            )

    @property
    def base_key(self) -> tuple[Path, str, str]:
        """What runs that can share one loaded base have in common."""
        method = self.method
        own = str(self.folder) if method.whole_model else ""
        return self.model_directory, method.base_precision, own

    def base(self) -> nn.Module:
        """The base in fp32, without adapter."""
        base = self.task.base(self.model_directory, torch.float32)
        quantize(base, self.method.base_precision)
        return base

    def model(self, base: nn.Module) -> FederatedModel:
        """The finished model, on a tree of modules of its own that shares the weights of `base`."""
        if not self.files.is_dir():
            raise RunError(f"FP5132 {self.folder} holds no finished run: there is no {self.files.name}/ in it")
        return saved_adapter.load(self.folder, self.task, clone_modules(base), len(self.labels or ()))


def clone_modules(module: nn.Module, known: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """The same tree of modules with the same parameters: an adapter put into it leaves `module` as it is.

    What stands in several places stands there again, as one; `known` are the twins made so far.
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
    """Four made-up rows that the model can read, to compare models with."""
    return make_up_batch(get_vision_config(load_model_config(model_directory)), 4, torch.Generator().manual_seed(0))

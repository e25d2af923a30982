"""Answers of finished runs to single inputs: texts, or files of images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.data.clip_folders import read_clips
from fedpeft.data.conversations import format_question
from fedpeft.data.image_folders import PICTURES, read_pixels
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError
from fedpeft.evaluate.patch_labels import format_grid, label_pictures
from fedpeft.evaluate.word_labels import label_words
from fedpeft.models import scoring
from fedpeft.models.abilities import DescribesImages
from fedpeft.models.answers.captioning import caption_images
from fedpeft.models.answers.generation import answer_prompts
from fedpeft.models.answers.questions import Question, QuestionForm
from fedpeft.models.base_model import UNBOUNDED, count_readable_tokens
from fedpeft.models.patch_features import compute_patch_features
from fedpeft.models.task import FederatedModel
from fedpeft.models.two_towers import find_tower_folders
from fedpeft.reporting.finished_run import FinishedRun


def compute_outputs(run: FinishedRun, base: nn.Module, asked: str) -> Tensor:
    """Return the logits of a classifier for a text or for a picture's file, (outputs,) in fp64.

    Raises:
        FedpeftError: the file is not a picture, or the run's files are missing.
    """
    model = run.model(base)
    if run.is_image_model:
        return scoring.compute_logits(model, {"pixel_values": run.load_pictures([asked]).batch([0])["pixel_values"]})[0]
    tokenizer = load_tokenizer(run.model_directory)
    encoded = tokenizer(asked, truncation=True, max_length=run.tokens, return_tensors="pt")
    return scoring.compute_logits(model, {name: encoded[name] for name in ("input_ids", "attention_mask")})[0]


def compute_probabilities(run: FinishedRun, base: nn.Module, asked: str) -> Tensor:
    """Return the calibrated probabilities of a classifier's classes, (classes,) in fp64.

    Raises:
        FedpeftError: as `compute_outputs`.
    """
    return (compute_outputs(run, base, asked) / run.temperature).softmax(-1)


def check_asked(run: FinishedRun, asked: str) -> None:
    """Refuse a text where a run reads pictures, and a picture where it reads texts.

    Raises:
        ConfigError: it is the other.
        DataError: the picture's file can't be read.
    """
    there = os.path.isfile(asked)  # a text may be longer than the name of a file, which a Path would fail at
    if not run.can_take_pictures:
        if there and asked.lower().endswith(PICTURES):
            raise ConfigError(
                f"FP1270 {run.folder} reads texts, and {asked} is an image; give a text, or a run on images"
            )
        return
    if run.frames:
        if not os.path.isdir(asked):
            raise ConfigError(
                f"FP1735 {run.folder} reads clips, and {asked[:60]!r} is not a folder; give a folder of frames: "
                "fedpeft predict RUN CLIP"
            )
        read_clips([asked], 8, run.frames)
        return
    if os.path.isdir(asked):
        describes = isinstance(run.task, DescribesImages)
        table = "" if describes else ", or a folder of them by --data FOLDER --output ANSWERS.csv"
        raise ConfigError(
            f"FP1271 {asked} is a folder, and neither a finished run nor an image; give an image file{table}"
        )
    if not there:
        raise ConfigError(
            f"FP1272 {run.folder} reads images, and there is no file {asked[:60]!r}; give an image file: "
            "fedpeft predict RUN IMAGE"
        )
    read_pixels([asked], 8)  # before a model is loaded, or another picture is answered


def format_verdict(labels: list[str], found: Tensor, abstain: float) -> str:
    """Return the likeliest class and its probability; no class if the probability is below `abstain`."""
    best = int(found.argmax())
    likeliest = f"{labels[best]} ({float(found[best]):.3f})"
    return f"no answer: {likeliest} is less likely than {abstain:g}" if float(found[best]) < abstain else likeliest


def format_labels(labels: Sequence[str], probabilities: Sequence[float]) -> str:
    """Return each label with its probability, marked by `+` if that is at least 0.5, otherwise by `-`."""
    return "  ".join(
        f"{'+' if p >= 0.5 else '-'}{label} ({p:.3f})" for label, p in zip(labels, probabilities, strict=True)
    )


def answer(run: FinishedRun, base: nn.Module, text: str, new_tokens: int, abstain: float = 0.0) -> str:
    """Return the answer of the run's model, on `base`, to a text or to a picture's file.

    Raises:
        FedpeftError: the file is not a picture, the run's files are missing, or a language model shall abstain.
    """
    if run.task.targets in ("numbers", "labels"):
        if abstain:
            raise ConfigError(f"FP1157 {run.folder} does not choose one class; leave --abstain out")
        found = run.task.values(compute_outputs(run, base, text)).tolist()
        return f"{found[0]:.6g}" if run.task.targets == "numbers" else format_labels(run.labels or [], found)
    if run.has_part_labels:
        if abstain:
            raise ConfigError(f"FP1505 {run.folder} labels words or patches; leave --abstain out")
        if run.is_image_model:
            return format_grid(label_pictures(run, run.model(base), [text])[0])
        words = text.split()
        (labels,) = label_words(run, run.model(base), [words])
        return " ".join(f"{word}/{label or 'cut off'}" for word, label in zip(words, labels, strict=True))
    if run.labels is not None:
        return format_verdict(run.labels, compute_probabilities(run, base, text), abstain)
    if abstain:
        raise ConfigError(f"FP1273 {run.folder} is a language model, which has no classes; leave --abstain out")
    model = run.model(base)
    if isinstance(run.task, DescribesImages):
        return write_caption(run, model, text, new_tokens)
    write = write_text if run.task.translates else continue_text
    return write(run, model, load_tokenizer(run.model_directory), text, new_tokens)


def continue_text(run: FinishedRun, model: FederatedModel, tokenizer: Any, text: str, new_tokens: int) -> str:
    """Return what the run's language model writes after a text, or as the answer to it after instruction tuning.

    Raises:
        ConfigError: the text with the new tokens is longer than the model reads.
    """
    complete = False
    if run.task.asks:
        text, complete = format_question(tokenizer, text, run.template)
    readable = count_readable_tokens(run.model_directory, run.method.extra_tokens, UNBOUNDED)
    asking = list(tokenizer(text, add_special_tokens=not complete)["input_ids"])
    if len(asking) + new_tokens > readable:
        raise ConfigError(
            f"FP1274 the text has {len(asking)} tokens, and the model reads at most {readable}, including "
            f"{new_tokens} new ones; give a shorter text, or fewer --new-tokens"
        )
    return answer_prompts(model, tokenizer, [asking], new_tokens)[0]


def write_text(run: FinishedRun, model: FederatedModel, tokenizer: Any, text: str, new_tokens: int) -> str:
    """Return the text that the run's decoder writes for a text that its encoder reads.

    Raises:
        ConfigError: one of both is longer than the model takes.
    """
    question = Question(QuestionForm(True, run.template, is_paired=True).pack_row(text, "", "the text"), text, ("",))
    asking = question.tokenize_prompt(tokenizer)
    readable = count_readable_tokens(run.model_directory, 0, UNBOUNDED)
    if max(len(asking), new_tokens) > readable:
        raise ConfigError(
            f"FP1275 the text has {len(asking)} tokens and --new-tokens asks for {new_tokens} more, but the model "
            f"reads and writes at most {readable}; give a shorter text, or fewer --new-tokens"
        )
    return answer_prompts(model, tokenizer, [asking], new_tokens)[0]


def write_caption(run: FinishedRun, model: FederatedModel, picture: str, new_tokens: int) -> str:
    """Return the caption of the run's model for a picture's file.

    Raises:
        ConfigError: the caption would be longer than the model reads.
        DataError: the file is not a picture.
    """
    task: Any = run.task
    readable = count_readable_tokens(run.model_directory, task.extra_tokens + 1, UNBOUNDED)
    if new_tokens > readable:
        raise ConfigError(f"FP1276 the model writes at most {readable} tokens after an image; give fewer --new-tokens")
    pixels = read_pixels([picture], run.picture_side)
    features = compute_patch_features(pixels, find_tower_folders(run.model_directory)["image"], task.side)
    return caption_images(model, load_tokenizer(run.model_directory), torch.from_numpy(features), new_tokens)[0]


def predict_answers(run: FinishedRun, inputs: Sequence[str], new_tokens: int) -> list[str]:
    """Return the run's answer to each input, a text or the file of an image.

    Raises:
        FedpeftError: an input is nothing that the run reads, or files of the run are missing.
    """
    if new_tokens < 1:
        raise ConfigError(f"FP1516 new_tokens={new_tokens} must be at least 1")
    run.check_answers()
    for one in inputs:
        check_asked(run, one)
    base = run.base()
    return [answer(run, base, one, new_tokens) for one in inputs]


def predict_together(runs: Sequence[FinishedRun], bases: Mapping[Any, nn.Module], text: str, abstain: float) -> str:
    """Return the answer of the mean of several classifiers' calibrated probabilities.

    Args:
        runs: the runs, which have the same classes.
        bases: their base models, by `FinishedRun.base_key`.
        text: the text, or the file of an image.
        abstain: least probability of an answer, 0 to 1.

    Raises:
        ConfigError: there are fewer than two classifiers, or their classes differ.
    """
    names = runs[0].labels
    if len(runs) < 2 or names is None or any(run.task.targets != "classes" for run in runs):
        raise ConfigError("FP1277 --ensemble takes two or more classifiers: RUN RUN ... TEXT")
    for run in runs:
        if run.labels != names:
            raise ConfigError(
                f"FP1278 {run.folder} has other classes than {runs[0].folder}; --ensemble needs the same ones"
            )
    return format_verdict(
        names, torch.stack([compute_probabilities(run, bases[run.base_key], text) for run in runs]).mean(0), abstain
    )

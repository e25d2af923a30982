"""Tasks of lm-eval, if it is installed, for the models of a finished run.

The harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness, MIT) provides the tasks, their prompts, metrics
and filters. This module provides a model's likelihoods and greedy answers. So methods that the harness does not
support, such as virtual tokens before a text, are measured as they were trained. A task's texts are used without a chat
template.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fedpeft.data.examples import batch_by_length
from fedpeft.data.model_config import describe_error
from fedpeft.data.tokens import build_token_rows, get_padding_id
from fedpeft.errors import AssetError, ConfigError, FedpeftError
from fedpeft.models import scoring
from fedpeft.models.answers.generation import BATCH, generate_tokens
from fedpeft.models.task import FederatedModel
from fedpeft.parts.families import TASKS
from fedpeft.reporting.observer import RunObserver

NEW_TOKENS = 256
"""Most tokens of an answer if the task sets no limit, as in lm-eval's own models."""

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class TaskSample:
    """One sample of a task: question, right answer, and the model's answer."""

    question: str
    right: str
    said: str


@dataclass(frozen=True)
class Tasks:
    """Tasks by name, or by a user's YAML files.

    Attributes:
        names: lm-eval's names, or paths.
        most: most samples of each task; 0: all.
        readable: most tokens that the model reads.
    """

    names: tuple[str, ...]
    most: int
    readable: int

    @classmethod
    def read(cls, text: str, most: int, readable: int) -> Tasks:
        """Return the tasks in `text`, joined by commas, with their data.

        Raises:
            AssetError: lm-eval is missing, or a task or its data can't be loaded.
        """
        if importlib.util.find_spec("lm_eval") is None:
            raise AssetError("FP2009 tasks of lm-eval need the package lm_eval; install it with: pip install lm-eval")
        made = cls(tuple(name.strip() for name in text.split(",") if name.strip()), most, readable)
        try:
            made.manager.load(list(made.names))
        except Exception as error:  # lm-eval, `datasets` and a user's YAML may raise anything
            raise AssetError(f"FP2010 lm-eval can't load {', '.join(made.names)}: {describe_error(error)}") from None
        return made

    @cached_property
    def manager(self) -> Any:
        """Index of lm-eval's tasks; if all tasks are files, it excludes lm-eval's own, whose search takes seconds."""
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        return TaskManager(include_defaults=not all(name.endswith(ENDINGS) for name in self.names))

    def measure(
        self, model: FederatedModel, tokenizer: Any, name: str, observer: RunObserver
    ) -> tuple[dict[str, float], list[TaskSample]]:
        """Return the measures of `model`, and its answers; the observer shows `name`.

        Raises:
            ConfigError: a task is not supported, such as one with sampled answers.
        """
        from lm_eval import simple_evaluate

        lm = create_model(model, tokenizer, self.readable, name, observer)
        try:
            found = simple_evaluate(
                lm, tasks=list(self.names), task_manager=self.manager, limit=self.most or None, bootstrap_iters=0
            )
        except FedpeftError:
            raise
        except Exception as error:  # a task's own functions may raise anything
            raise ConfigError(
                f"FP1167 lm-eval's {', '.join(self.names)} can't be measured: {describe_error(error)}"
            ) from None
        return _collect_measures(found), [_read_sample(s) for samples in found["samples"].values() for s in samples]


def _collect_measures(found: Any) -> dict[str, float]:
    """Return the measures of groups, and of tasks outside of groups.

    A name is "TASK METRIC", followed by the filter unless it is "none".
    """
    within = {task for group in found.get("groups", {}) for task in found["group_subtasks"].get(group, ())}
    made = {}
    for task, row in (found["results"] | found.get("groups", {})).items():
        for key, value in row.items():
            metric, comma, filtered = key.partition(",")
            if task in within or not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            made[f"{task} {metric}" + ("" if filtered == "none" else f" ({filtered})")] = float(value)
    return made


def _read_sample(sample: Any) -> TaskSample:
    """Return a sample; for multiple choice, with the likeliest choice."""
    arguments = [tuple(given) for given in sample["arguments"]]
    said = sample["filtered_resps"]
    if len(arguments) > 1 and len(said) == len(arguments):
        said = [arguments[int(np.argmax([float(one[0]) for one in said]))][1]]
    return TaskSample(str(arguments[0][0]), str(sample["target"]), str(said[0] if len(said) == 1 else said))


class EvaluatedModel:
    """Model interface of lm-eval; `create_model` makes lm-eval's `LM` of it."""

    backend = "causal"

    def __init__(self, model: FederatedModel, tokenizer: Any, readable: int, name: str, observer: RunObserver) -> None:
        """Store the model.

        Args:
            model: a model of the run.
            tokenizer: its tokenizer.
            readable: most tokens that the model reads.
            name: the model's name for the observer.
            observer: observes the progress.
        """
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.readable = readable
        self.name = name
        self.observer = observer

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        end: int = self.tokenizer.eos_token_id
        return end

    @property
    def prefix_token_id(self) -> int:
        """Token before the start of a text."""
        first: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids, with the tokenizer's special tokens unless the text already contains them."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return log p of each request's last tokens given those before them, and whether they are the likeliest."""
        if not requests:
            return []
        self.observer.phase(f"{self.name}: likelihoods", len(requests))
        rows = [(asked + said)[-self.readable :] for _, asked, said in requests]
        counted = [
            [i >= max(1, len(row) - len(said)) for i in range(len(row))]
            for row, (_, _, said) in zip(rows, requests, strict=True)
        ]
        examples, task = build_token_rows(rows, get_padding_id(self.tokenizer), None, counted), TASKS.build("causal_lm")
        found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        with torch.inference_mode():
            for index in batch_by_length(examples.lengths, BATCH):
                made = task.row_losses(self.model, scoring.move_batch(examples.batch(index), self.model))
                likeliest = (made.correct == made.counts).tolist()
                for place, loss, same in zip(index.tolist(), made.sums.double().tolist(), likeliest, strict=True):
                    found[place] = -loss, same
                self.observer.advance(len(index))
        return found

    def loglikelihood_rolling(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log p of each whole text, in windows if it is longer than the model reads."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows: list[tuple[Any, list[int], list[int]]] = []
        counts = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            rolled = get_rolling_token_windows(ids, self.prefix_token_id, self.readable - 1, 1)
            own = [(None, *make_disjoint_window(window)) for window in rolled]
            windows += own
            counts.append(len(own))
        each = iter(self._loglikelihood_tokens(windows))
        return [sum(next(each)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy answer to each request, up to one of the texts that end it.

        Raises:
            ConfigError: a task requires sampled answers, or longer ones than the model reads.
        """
        from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

        self.observer.phase(f"{self.name}: answers", len(requests))
        asked = [(self.tok_encode(r.args[0]), normalize_gen_kwargs(r.args[1], NEW_TOKENS)) for r in requests]
        if any(settings.get("do_sample") for _, settings in asked):
            raise ConfigError(
                "FP1168 a task of lm-eval requires sampled answers, but only greedy ones are supported; choose another "
                "task"
            )
        most = {settings["max_gen_toks"] for _, settings in asked}
        if max(most) >= self.readable:
            raise ConfigError(
                f"FP1169 a task of lm-eval requires {max(most)} new tokens, but the model reads {self.readable} in "
                "all; choose another task"
            )
        found = [""] * len(asked)
        for new in most:
            order = [i for i, (_, settings) in enumerate(asked) if settings["max_gen_toks"] == new]
            order.sort(key=lambda i: -len(asked[i][0]))
            for places in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
                prompts = [asked[i][0][-(self.readable - new) :] for i in places]
                for place, ids in zip(places, generate_tokens(self.model, self.tokenizer, prompts, new), strict=True):
                    text = self.tokenizer.decode(ids, skip_special_tokens=True)
                    found[place] = postprocess_generated_text(text, asked[place][1]["until"], None)
                self.observer.advance(len(places))
        return found


def create_model(*given: Any) -> Any:
    """Return an `EvaluatedModel` as lm-eval's `LM`."""
    from lm_eval.api.model import TemplateLM

    return type("Answering", (EvaluatedModel, TemplateLM), {})(*given)

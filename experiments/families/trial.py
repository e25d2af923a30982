"""One trial of a family: load, adapt, train sequentially and batched, save, and load again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.executor import Job
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.sequential import SequentialExecutor

from experiments.families.checkpoints import TOKENS, Family
from fedpeft.data.rows import Rows
from fedpeft.errors import FedpeftError
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.task import Task
from fedpeft.models.tasks.seq2seq import Seq2Seq
from fedpeft.parts.families import DATASETS, LOCAL_OPTIMIZERS, LOCAL_WORK, PEFT_METHODS, TASKS
from fedpeft.peft import saved_adapter
from fedpeft.peft.adapter import Layout, State

LEARNS = "yes"
ROWS = 12
CLIENTS = 2

APART = {"fp32": 1e-3, "bf16": 0.3}
"""Largest distance between the updates of the two executors, relative to their norm. An unrelated update is 1 away."""


@dataclass(frozen=True)
class Trial:
    """The result of a family under a task and a method.

    Attributes:
        answer: `LEARNS`, or the sentence that refuses it.
        apart: distance of the updates of both executors, relative to their norm; None if refused, or with one executor.
        reloaded: largest difference between the outputs of the saved and the trained model, fp32.
    """

    answer: str
    apart: float | None = None
    reloaded: float | None = None

    @property
    def learns(self) -> bool:
        """Whether the family runs."""
        return self.answer == LEARNS


@dataclass(frozen=True)
class Subject:
    """A checkpoint of a family in a folder, and examples for a task."""

    folder: Path
    task: Task
    rows: Rows
    classes: int | None

    @classmethod
    @contextmanager
    def create(cls, family: Family, task: str) -> Iterator[Subject]:
        """Create a temporary checkpoint for a task: "classification", "causal_lm" or "seq2seq"."""
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "MODEL"
            folder.mkdir()
            family.save(folder, task)
            built = TASKS.build(task)
            yield cls(folder, built, *_load_rows(built, family.images))

    def try_method(self, peft: str, dtype: str = "fp32", thoroughly: bool = True) -> Trial:
        """Train it for a few steps.

        Args:
            peft: text of a method.
            dtype: "fp32" or "bf16".
            thoroughly: by both executors, saved, and loaded again.

        Returns:
            What came of it; what is refused is a sentence, anything else that fails is raised.
        """
        try:
            return _train(self, peft, dtype, thoroughly)
        except FedpeftError as error:
            return Trial(str(error).replace(str(self.folder), "MODEL"))


def _load_rows(task: Task, images: bool) -> tuple[Rows, int | None]:
    language = "tiny_seq2seq(owners=2, rows=20)" if isinstance(task, Seq2Seq) else "tiny_lm(owners=2, rows=20)"
    text = "digits" if images else language if task.metric == "perplexity" else "tiny(rows=12)"
    data = DATASETS.build(text).load()
    rows = data.train
    labels = None if rows.labels is None else rows.labels[:ROWS]
    return Rows(rows.inputs[:ROWS], labels, None), len(data.label_names) if data.label_names else None


def _train(subject: Subject, peft: str, dtype: str, thoroughly: bool) -> Trial:
    task, folder, classes = subject.task, subject.folder, subject.classes
    method, precision = PEFT_METHODS.build(peft), DTYPES[dtype]
    rows = task.tokenise(subject.rows, folder, TOKENS // 2)
    reference = task.model(task.base(folder, precision), classes)
    method.attach(reference, dtype)
    layout, start = method.layout(reference), method.start(reference, 0)
    jobs = _create_jobs(layout, start)
    one = list(SequentialExecutor(reference, task, rows, layout).train(jobs if thoroughly else jobs[:1]))
    if not thoroughly:
        return Trial(LEARNS)
    plain = task.model(task.base(folder, precision), classes)
    batched = BatchedExecutor(plain, task, method, rows, layout, CLIENTS, "native")
    apart = max(_compute_distance(a.state, b.state, start) for a, b in zip(one, batched.train(jobs), strict=True))
    state = one[0].state
    saved_adapter.save(folder.parent, reference, state, ["a"] * classes if classes else None)
    loaded = saved_adapter.load(folder.parent, task, task.base(folder, torch.float32), classes or 0)
    trained = task.model(task.base(folder, torch.float32), classes)
    method.attach(trained, "fp32")
    saved_adapter.put(trained, state)
    batch = rows.batch(np.arange(4))
    with torch.no_grad():
        return Trial(LEARNS, apart, float((trained.eval()(batch) - loaded(batch)).abs().max()))


def _create_jobs(layout: Layout, start: State) -> list[Job]:
    local = LocalTraining(3, LOCAL_WORK.build("epochs(1.0)"), optimizer=LOCAL_OPTIMIZERS.build("sgd(head_rate=1.0)"))
    shards = np.array_split(np.arange(ROWS), CLIENTS)
    return [
        Job(client, 1, 7, rows, {n: t.clone() for n, t in start.items()}, frozenset(layout.names), local, 0.05)
        for client, rows in enumerate(shards)
    ]


def _compute_distance(one: State, other: State, start: State) -> float:
    moved = torch.cat([(one[n] - start[n]).flatten().float() for n in start])
    off = torch.cat([(one[n] - other[n]).flatten().float() for n in start])
    return float(off.norm() / moved.norm().clamp(min=1e-12))

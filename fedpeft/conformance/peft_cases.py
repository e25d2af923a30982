"""PEFT methods on tiny models, for tests of every method; the built-in ones include combinations."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpeft.aggregation.strategy import Strategy
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.executor import Job, Trained
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.sequential import SequentialExecutor
from fedpeft.conformance import list_tested_parts
from fedpeft.data.rows import load_dataset
from fedpeft.models.base_model import resolve_model
from fedpeft.models.dtypes import DTYPES, get_adapter_dtype
from fedpeft.models.quantized_base import quantize
from fedpeft.models.task import find_trainable
from fedpeft.parts.families import LOCAL_OPTIMIZERS, PEFT_METHODS, TASKS, strategies
from fedpeft.peft import saved_adapter
from fedpeft.peft.adapter import AdapterShape, State
from fedpeft.peft.method import PeftMethod

Tiny = tuple[Any, Any, Path, int]
"""Task, tokenized examples, model folder and number of classes."""

SMALL = {
    "adapter_fusion": "adapter_fusion(runs=('{finished}/0', '{finished}/1'), width=5)",
    "adamix": "adamix(dim=6, experts=3)",
    "adalora": "adalora(rank=4, target_rank=2, shrink_rounds=2)",
    "lora": "lora(rank=4)",
    "rslora": "rslora(rank=4)",
    "dora": "dora(rank=4)",
    "qlora": "qlora(rank=4)",
    "lora_fa": "lora_fa(rank=4)",
    "lora_sb": "lora_sb(rank=4)",
    "lora_gram": "lora_gram(rank=4, width=12)",
    "row_lora": "row_lora(rank=4)",
    "expert_lora": "expert_lora(rank=4, experts=3)",
    "vera": "vera(rank=16)",
    "bottleneck": "bottleneck(dim=6)",
    "prompt_ensemble": "prompt_ensemble(prompts=3, length=4)",
    "prefix_tuning": "prefix_tuning(length=5)",
    "prompt_tuning": "prompt_tuning(length=5)",
    "quantum_peft": "quantum_peft(rank=3, layers=1)",
    "p_tuning": "p_tuning(length=5, hidden=12)",
    "unipelt": "unipelt(methods='lora(rank=4) + prefix(length=5) + bottleneck(dim=6)')",
    "subspace": "subspace(dimension=200, of=lora(rank=4))",
}
MORE = [
    "p_tuning(length=5, hidden=12, encoder=lstm)",
    "p_tuning(length=5, hidden=12, after=(0, 3))",
    "p_tuning_v2(length=5)",
    "unipelt(methods='bottleneck(dim=6, place=parallel) + lora(rank=4, layers=1)')",
    "subspace(dimension=300, of=full)",
    "subspace(dimension=100, of='ia3 + bitfit + prefix(length=3) + bottleneck(dim=6)')",
    "quantum_peft(rank=3, parameterization=taylor)",
    "quantum_peft(rank=3, train=diagonal)",
    "bottleneck(dim=6, place=houlsby, layers=0)",
    "bottleneck(dim=6, place=parallel, activation=gelu)",
    "lora(rank=4) + bitfit",
    "lora(rank=4, layers=1) + head2toe",
    "prefix(length=5) + bottleneck(dim=6)",
    "bottleneck(dim=6) + bitfit(layers=1) + lora(rank=4, layers=1) + ia3",
    "lora_fa(rank=4) + prefix(length=7) + bitfit",
    "prefix_tuning_plus(layers=1) + prefix(length=3) + lora(rank=4)",
    "lora(rank=4) + ia3 + bitfit",
    "ia3 + lora_fa(rank=4)",
    "lora(rank=4, layers=(1, 0)) + bottleneck(dim=6, layers=(0,)) + prefix(length=3, layers=(1,))",
]
NAMES = list_tested_parts(PEFT_METHODS)
OWN = PEFT_METHODS.own_names == NAMES
SPECS = [*(SMALL.get(name, name) for name in NAMES), *(MORE if OWN else [])]
RULE = {"product": "rolora", "singular values": "flexlora", "Gram matrix": "florg"}
"""Strategy for each joint meaning for which a plain mean is wrong."""

SHARDS = [np.arange(0, 20), np.arange(20, 50), np.arange(50, 57)]


def create_model(method: PeftMethod, tiny: Tiny, dtype: str) -> Any:
    """Return the method's model, on a base of the method's own precision."""
    task, _, folder, classes = tiny
    base = task.base(folder, DTYPES[dtype])
    quantize(base, method.base_precision)
    model = task.model(base, classes)
    method.attach(model, dtype)
    return model


@functools.cache
def create_finished_runs(folder: Path, task: Any, classes: int) -> Path:
    """Return a folder with two finished runs of bottleneck on the base in `folder`, for methods that combine runs."""
    made = Path(tempfile.mkdtemp(prefix="finished-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    for number in range(2):
        spec = f"bottleneck(dim={4 + number})"
        method, model = PEFT_METHODS.build(spec), task.model(task.base(folder, torch.float32), classes)
        method.attach(model, "fp32")
        noise = torch.Generator().manual_seed(number)
        state = {n: 0.3 * torch.randn(p.shape, generator=noise) for n, p in find_trainable(model).items()}
        (made / str(number)).mkdir()
        saved_adapter.save(made / str(number), model, state, None, None, spec)
    return made


@functools.cache
def load_tiny_pictures() -> Tiny:
    """Return task, examples, model folder and number of classes of a small image dataset."""
    task, folder = TASKS.build("classification"), resolve_model("tiny_vision")
    data = load_dataset("digits")
    return task, task.tokenise(data.train.take(np.arange(60)), folder, 0), folder, data.classes


class Case:
    """A method on a tiny model of texts or images, with a start that differs from zero."""

    def __init__(self, spec: str, tiny: Tiny, dtype: str = "fp64") -> None:
        """Build the model, its layout and its start; `dtype` is that of the base."""
        if "{finished}" in spec:
            task, _, folder, classes = tiny
            spec = spec.replace("{finished}", str(create_finished_runs(folder, task, classes)))
        self.spec = spec
        self.method = PEFT_METHODS.build(spec)
        self.tiny = tiny = load_tiny_pictures() if self.method.of_pictures else tiny
        self.task, self.rows, self.folder, self.classes = tiny
        self.dtype = dtype
        self.model = create_model(self.method, tiny, dtype)
        self.layout = self.method.layout(self.model)
        noise = torch.Generator().manual_seed(0)
        self.first = {n: t.to(get_adapter_dtype(dtype)) for n, t in self.method.start(self.model, 0).items()}
        self.start = {n: t + 0.05 * torch.randn(t.shape, generator=noise, dtype=t.dtype) for n, t in self.first.items()}
        self.sequential = SequentialExecutor(self.model, self.task, self.rows, self.layout)

    def create_batched_executor(self) -> BatchedExecutor:
        """Return an executor that trains two clients at a time."""
        base = self.task.base(self.folder, DTYPES[self.dtype])
        quantize(base, self.method.base_precision)
        plain = self.task.model(base, self.classes)
        return BatchedExecutor(plain, self.task, self.method, self.rows, self.layout, 2, "native")

    def jobs(
        self,
        start: State | None = None,
        forms: Sequence[AdapterShape | None] | None = None,
        rate: float = 1e-3,
        steps: int = 3,
        optimizer: str = "adamw(head_rate=1.0)",
    ) -> list[Job]:
        """Return one job for each of `SHARDS`, each with its own shape of `start`."""
        made = []
        for client, rows in enumerate(SHARDS):
            form = forms[client] if forms else self.layout.form
            shapes = self.layout.replace_form(form).shapes
            received = {n: t[tuple(slice(0, s) for s in shapes[n])].clone() for n, t in (start or self.start).items()}
            local = LocalTraining(optimizer=LOCAL_OPTIMIZERS.build(optimizer)).replace_steps(steps)
            made.append(Job(client, 1, 7, rows, received, frozenset(self.layout.names), local, rate, form=form))
        return made

    @property
    def strategy(self) -> Strategy:
        """Strategy whose mean is right for the method."""
        return strategies.build(RULE.get(self.method.joint_meaning, "fedit"))


each_method = pytest.mark.parametrize("spec", SPECS)
"""Parametrization of tests for every method."""


def find_largest_difference(one: Sequence[Trained], other: Sequence[Trained], jobs: Sequence[Job]) -> float:
    """Return the largest difference of a tensor between two ways of training, relative to the tensor's movement."""
    return max(
        float((a.state[n] - b.state[n]).norm() / (a.state[n] - job.received[n]).norm().clamp(min=1e-300))
        for a, b, job in zip(one, other, jobs, strict=True)
        for n in a.state
    )

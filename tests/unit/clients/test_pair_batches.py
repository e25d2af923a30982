"""Pairs in batches that clients share: the batched executor against the reference, also from hidden states on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.batched import BatchedExecutor, assign_rows
from fedpeft.clients.executor import Job
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.sequential import SequentialExecutor

from fedpeft.data.rows import load_dataset
from fedpeft.models.base_model import resolve_model
from fedpeft.models.frozen_blocks import ActivationCache, cut_below, get_sequences, start_from_store
from fedpeft.parts.families import LOCAL_OPTIMIZERS, LOCAL_WORK, PEFT_METHODS, TASKS

SHARDS = [np.arange(0, 20), np.arange(20, 29), np.arange(29, 30), np.arange(30, 41)]


def executors(task_text: str, spec: str, folder=None, depth: int = 0):
    task, directory, method = TASKS.build(task_text), resolve_model("tiny"), PEFT_METHODS.build(spec)
    rows = task.tokenise(load_dataset("tiny_pairs(rows=60)").train, directory, 32)

    def base():
        return task.base(directory, torch.float64)

    if depth:
        store = ActivationCache(folder, get_sequences(rows), depth, 48, torch.float64)
        for tile in store.find_missing_tiles():
            store.fill(tile, base())
        rows = start_from_store(rows, store)
    reference, plain = (task.model(cut_below(base(), depth) if depth else base(), None) for _ in range(2))
    method.attach(reference, "fp64")
    layout = method.layout(reference)
    noise = torch.Generator().manual_seed(0)
    start = {
        n: t.double() + 0.05 * torch.randn(t.shape, generator=noise, dtype=torch.float64)
        for n, t in method.start(reference, 0).items()
    }
    batched = BatchedExecutor(plain, task, method, rows, layout, 3, "native")
    return SequentialExecutor(reference, task, rows, layout), batched, layout, start


def jobs(layout, start):
    training = LocalTraining(8, LOCAL_WORK.build("epochs"), optimizer=LOCAL_OPTIMIZERS.build("adamw"))
    names = frozenset(layout.names)
    return [Job(k, 1, 7, rows, start, names, training, 1e-3, layout.form) for k, rows in enumerate(SHARDS)]


@pytest.mark.parametrize("task", ["retrieval", "retrieval(loss=sigmoid)"])
@pytest.mark.parametrize("spec", ["lora(rank=2, layers=1)", "lora(rank=2, layers=1, dropout=0.2)"])
def test_many_clients_in_one_pass_learn_what_each_learns_alone(task: str, spec: str) -> None:
    sequential, batched, layout, start = executors(task, spec)
    work = jobs(layout, start)
    for one, other in zip(sequential.train(work), batched.train(work), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-9)
        for name, tensor in one.state.items():
            torch.testing.assert_close(tensor, other.state[name], rtol=0, atol=1e-9)


def test_hidden_states_that_are_kept_teach_the_same(tmp_path) -> None:
    whole, _, layout, start = executors("retrieval", "lora(rank=2, layers=1)")
    upper, _, _, _ = executors("retrieval", "lora(rank=2, layers=1)", tmp_path / "store", depth=2)
    rows = np.arange(40)
    for one, other in zip(whole.train(jobs(layout, start)), upper.train(jobs(layout, start)), strict=True):
        for name, tensor in one.state.items():
            torch.testing.assert_close(tensor, other.state[name], rtol=0, atol=1e-9)
    assert whole.evaluate(start, rows).loss == pytest.approx(upper.evaluate(start, rows).loss)


def test_rows_are_judged_among_all_and_in_any_order() -> None:
    sequential, _, _, start = executors("retrieval", "lora(rank=2, layers=1)")
    rows = np.arange(60)  # more than a batch of an evaluation
    found = sequential.evaluate(start, rows)
    assert found == replace(sequential.evaluate(start, rows[::-1]), loss=found.loss)
    parts = [sequential.evaluate(start, part) for part in np.array_split(rows, 4)]
    assert sum(part.correct for part in parts) > found.correct  # among fewer it is easier
    assert found.count == 60


def test_padding_belongs_to_nobody() -> None:
    real = torch.tensor([True, True, False, True, False, False])
    assert assign_rows(real, 2).tolist() == [0, 0, -1, 1, -1, -1]

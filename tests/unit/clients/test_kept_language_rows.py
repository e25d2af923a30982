"""Rows of a language model from the lowest adapted block on: what the blocks below make of them is computed once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.sequential import SequentialExecutor
from transformers import GPT2Config, GPT2LMHeadModel

from fedpeft.models.base_model import resolve_model
from fedpeft.models.frozen_blocks import ActivationCache, HiddenRows, can_start_at, cut_below
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.wiring import activation_cache
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup
from tests.unit.clients.test_packing import TASK, executors, jobs, made_rows

SPEC = "lora(rank=4, layers=1)"


def test_training_and_evaluation_are_those_of_the_whole_model(tmp_path):
    folder = resolve_model("tiny_lm")
    base = TASK.base(folder, torch.float64)
    rows = made_rows(base.config.vocab_size, targets=True)
    [sequential, batched], layout, start = executors(SPEC, rows=rows)
    depth = base.config.num_hidden_layers - 1
    assert depth > 0
    store = ActivationCache(tmp_path / "frozen", rows, depth, base.config.hidden_size, torch.float64)
    for tile in store.find_missing_tiles():
        store.fill(tile, base)
    plain = TASK.model(cut_below(base, depth), None)
    kept = BatchedExecutor(plain, TASK, PEFT_METHODS.build(SPEC), HiddenRows(store), layout, 3, "native")
    wrapped = TASK.model(cut_below(TASK.base(folder, torch.float64), depth), None)
    PEFT_METHODS.build(SPEC).attach(wrapped, "fp64")
    work = jobs(layout, start)
    for whole, part in ((batched, kept), (sequential, SequentialExecutor(wrapped, TASK, HiddenRows(store), layout))):
        for one, other in zip(whole.train(work), part.train(work), strict=True):
            assert other.loss == pytest.approx(one.loss, rel=1e-10)
            assert all(torch.allclose(other.state[n], t, rtol=1e-8, atol=1e-12) for n, t in one.state.items())
        totals, others = whole.evaluate(start, np.arange(12)), part.evaluate(start, np.arange(12))
        assert (others.count, others.correct) == (totals.count, totals.correct)
        assert others.loss == pytest.approx(totals.loss, rel=1e-10)


def test_a_model_that_adds_positions_on_the_way_in_is_read_from_its_tokens():
    tiny = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    assert not can_start_at(GPT2LMHeadModel(tiny).eval(), 1)


@pytest.fixture(scope="module")
def setup():
    config = RunConfig(dataset="tiny_lm", clients=10, peft=SPEC, dtype="fp32", rounds=20, cohort=0.2)
    return Setup.create(parse_run(config), DatasetInfo("text", "causal_lm", None, "tiny_lm", clients=10))


@pytest.mark.parametrize(
    ("settings", "holders", "kept"),
    [
        ({}, 10, True),  # each row four times
        ({"rounds": 5}, 10, False),  # once
        ({}, 0, False),  # a real client's, or only evaluated
    ],
)
def test_rows_are_kept_that_are_trained_on_more_than_once(setup, settings, holders, kept):
    changed = replace(setup, config=replace(setup.config, **settings))
    lengths = np.full(300, 20)
    assert bool(activation_cache.count_cached_blocks(changed, lengths, holders)) is kept
    assert activation_cache.count_cached_blocks(changed, lengths * 10**7, holders) == 0  # the disk is not for that


def test_how_often_a_row_is_trained_on(setup):
    assert activation_cache.count_visits(setup, 40) == 4.0
    steps = replace(setup, training=setup.training.replace_steps(5))
    assert activation_cache.count_visits(steps, 40) == 4 * 5 * 4 / 40


def test_rows_of_pairs_are_not_kept():
    task = TASKS.build("dpo")
    assert (
        activation_cache.count_frozen_blocks(TASK.base(resolve_model("tiny_lm"), torch.float32), None, "text", task)
        == 0
    )

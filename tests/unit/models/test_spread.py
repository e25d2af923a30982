"""A base on several devices: each block where it belongs, and the same training as on one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fedpeft.clients.sequential import SequentialExecutor

from fedpeft.models.base_model import resolve_model
from fedpeft.models.layers import find_blocks
from fedpeft.models.spread import assign_devices, spread_model
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.reporting.workers import _check_spread
from tests.elsewhere import DEVICE
from tests.refusals import refuses
from tests.unit.clients.test_packing import TASK, executors, jobs, made_rows

SPEC = "lora(rank=4, layers=0)"


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [
        ([1] * 4, 2, [0, 0, 1, 1]),
        ([1] * 7, 3, [0, 0, 1, 1, 1, 2, 2]),
        ([9, 1, 1], 3, [0, 1, 2]),
        ([1, 1, 9], 3, [0, 1, 2]),
        ([5, 5], 1, [0, 0]),
    ],
)
def test_devices_get_about_as_much_and_each_something(sizes, devices, expected):
    assert assign_devices(sizes, devices) == expected


def test_a_base_on_two_devices_trains_as_on_one(monkeypatch):
    """The device of ordinary memory refuses to compute with numbers of the other."""
    monkeypatch.setattr("torch.inference_mode", torch.no_grad)
    folder = resolve_model("tiny_lm")
    rows = made_rows(100, targets=True)
    [whole, *_], layout, start = executors(SPEC, rows=rows)
    model = TASK.model(TASK.base(folder, torch.float64), None)
    PEFT_METHODS.build(SPEC).attach(model, "fp64")
    spread_model(model, ["cpu", DEVICE])
    stack = find_blocks(model)[1]
    assert [next(block.parameters()).device.type for block in stack] == ["cpu", "elsewhere"]
    parted = SequentialExecutor(model, TASK, rows, layout)
    work = jobs(layout, start, optimizer="adamw(max_norm=0.5)")
    for one, other in zip(whole.train(work), parted.train(work), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-10)
        assert all(tensor.device.type == "cpu" for tensor in other.state.values())
        assert all(torch.allclose(other.state[n], t, rtol=1e-8, atol=1e-12) for n, t in one.state.items())
    assert parted.evaluate(start, np.arange(12)).loss == pytest.approx(whole.evaluate(start, np.arange(12)).loss)
    residual = {layout.pairs[0].module: torch.ones(layout.pairs[0].out_features, layout.pairs[0].in_features)}
    for executor in (whole, parted):
        executor.set_residual(residual)
    assert parted.evaluate(start, np.arange(12)).loss == pytest.approx(whole.evaluate(start, np.arange(12)).loss)


def test_more_devices_than_blocks_are_refused():
    model = TASK.model(TASK.base(resolve_model("tiny_lm"), torch.float32), None)
    with refuses("FP4042", "2", "3"):
        spread_model(model, ["cpu"] * 3)


def setup(task="causal_lm", mechanism=None):
    return SimpleNamespace(task=TASKS.build(task), mechanism=mechanism)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((setup(), 1, ["cuda:0"]), ("FP1397", 1, "--grid")),
        ((setup(), 2, ["cuda:0", "cuda:1"]), ("FP1398", "--workers", 2)),
        *(
            ((setup(task), 1, ["cuda:0", "cuda:1"]), ("FP1400", "--grid"))
            for task in ("classification", "token_labels", "retrieval", "towers")
        ),
        ((setup(mechanism=SimpleNamespace(per_example=True, name="dp_sgd")), 1, ["a", "b"]), ("FP1401", "dp_sgd")),
    ],
)
def test_what_can_t_be_spread_is_one_sentence(given, words):
    with refuses(*words):
        _check_spread(*given)

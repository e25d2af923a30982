"""Prompt ensembles against prompts one by one: what they say together, how each learns, and how they are weighed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpeft.conformance.peft_cases import Case, create_model
from fedpeft.models.task import find_trainable
from fedpeft.peft import saved_adapter
from fedpeft.peft.family import PEFT_METHODS
from fedpeft.peft.methods.prompt_ensemble import SHARES
from tests.refusals import refuses

SPEC = "prompt_ensemble(prompts=3, length=4)"
ROWS = np.arange(9)


@pytest.fixture
def case(tiny):
    made = Case(SPEC, tiny)
    made.start["prompts.weight"] *= 20  # so that prompts differ
    made.sequential.load(made.start)
    return made


@pytest.fixture
def one_by_one(tiny, case):
    """The `peft` library's prompt models, each with one of the prompts."""
    models = []
    for prompt in case.start["prompts.weight"].split(4):
        model = create_model(PEFT_METHODS.build("prompt_tuning(length=4)"), tiny, "fp64")
        state = {n: t for n, t in case.start.items() if n.startswith("head.")}
        saved_adapter.put(model, state | {"prompt_encoder.embedding.weight": prompt})
        models.append(model)
    return models


def test_it_says_the_mean_of_what_each_prompt_says(case, one_by_one):
    batch = case.rows.batch(ROWS)
    with torch.no_grad():
        each = torch.stack([model(batch).softmax(-1) for model in one_by_one])
        assert float((each - each.mean(0)).abs().max()) > 0.01
        assert torch.allclose(case.model(batch).exp(), each.mean(0), rtol=0, atol=1e-12), "shares of fp64"
        features = torch.stack([model.features(batch) for model in one_by_one]).mean(0)
        assert torch.allclose(case.model.features(batch), features, atol=1e-12)
        case.model.shares = torch.tensor([0.2, 0.3, 0.5])
        mixed = torch.einsum("m,mbc->bc", torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), each)
        assert torch.allclose(case.model(batch).exp(), mixed, atol=1e-7)


def test_each_prompt_learns_as_if_alone(case, one_by_one):
    batch = case.rows.batch(ROWS)
    losses = case.task.step_losses(case.model, batch)
    parameters = find_trainable(case.model)
    found = dict(zip(parameters, torch.autograd.grad(losses.sums.sum(), list(parameters.values())), strict=True))
    prompts, heads, sums = [], [], []
    for model in one_by_one:
        own, alone = find_trainable(model), case.task.row_losses(model, batch).sums
        names = ["prompt_encoder.embedding.weight", "head.weight"]
        prompt, head = torch.autograd.grad(alone.sum(), [own[n] for n in names])
        prompts.append(prompt / 3)
        heads.append(head / 3)
        sums.append(alone / 3)
    assert torch.allclose(found["prompts.weight"], torch.cat(prompts), atol=1e-13)
    assert torch.allclose(found["head.weight"], sum(heads), atol=1e-12)
    assert torch.allclose(losses.sums, sum(sums), atol=1e-12)
    offsets = torch.randn(len(ROWS), case.classes, dtype=torch.float64)
    shifted = case.task.step_losses(case.model, batch, offsets)
    expected = sum(case.task.losses(model(batch) + offsets, batch).sums for model in one_by_one) / 3
    assert torch.allclose(shifted.sums, expected, atol=1e-12)


@pytest.mark.medium
def test_weights_come_from_sums_over_held_out_rows_and_are_saved(tiny, case, one_by_one, tmp_path):
    with torch.no_grad():
        sums = [0.0] * 3
        for row in range(len(case.rows)):
            one = case.rows.batch(np.array([row]))
            for j, model in enumerate(one_by_one):
                sums[j] += float(case.task.losses(model(one), one).sums)
    expected = (-torch.tensor(sums, dtype=torch.float64) / len(case.rows) / 0.1).softmax(0)
    fitted = case.method.fit_when_finished(case.model, case.rows)
    assert torch.allclose(fitted[SHARES].double(), expected, atol=1e-6)
    assert float(expected.max() - expected.min()) > 0.02
    assert case.method.fit_when_finished(case.model, case.rows) == {}, "once is enough"
    assert PEFT_METHODS.build("prompt_ensemble(weights=equal)").fit_when_finished(case.model, case.rows) == {}
    labels = ["a"] * case.classes
    saved_adapter.save(tmp_path, create_model(case.method, tiny, "fp64"), case.start, labels, None, SPEC)
    batch = case.rows.batch(ROWS)
    for shares, model in ((None, plain(tiny, tmp_path)), (fitted[SHARES], added(tiny, tmp_path, fitted))):
        case.model.shares = shares
        with torch.no_grad():
            assert torch.allclose(model(batch).double(), case.model(batch), atol=1e-5)


def plain(tiny, folder):
    task, _, base, classes = tiny
    return saved_adapter.load(folder, task, task.base(base, torch.float32), classes)


def added(tiny, folder, fitted):
    saved_adapter.add(folder, fitted)
    return plain(tiny, folder)


def test_what_is_saved_stays_whole_where_more_can_not_be_added(tmp_path, monkeypatch):
    """A disk that is full in the middle of the file must not take the trained adapter along."""
    file = tmp_path / "adapter" / saved_adapter.OWN_TENSORS
    file.parent.mkdir()
    save_file({"prompts.weight": torch.ones(3, 4)}, file)
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with refuses("FP5102", "No space left"):
            saved_adapter.add(tmp_path, {SHARES: torch.ones(3)})
    assert file.read_bytes() == before
    assert [found.name for found in file.parent.iterdir()] == [file.name]
    saved_adapter.add(tmp_path, {SHARES: torch.ones(3)})
    assert load_file(file).keys() == {"prompts.weight", SHARES}

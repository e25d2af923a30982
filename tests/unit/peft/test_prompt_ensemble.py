"""Prompt ensembles against prompts one by one: what they say together, how each learns, and how they are weighed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpeft.conformance.peft_cases import Case, create_model
from fedpeft.data.rows import load_dataset
from fedpeft.data.tokens import load_tokenizer
from fedpeft.models.answers.generation import generate_tokens
from fedpeft.models.base_model import resolve_model
from fedpeft.models.task import FederatedModel, find_trainable
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.peft import saved_adapter
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
    """Return the `peft` library's prompt models, one per prompt."""
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


@pytest.fixture(scope="module")
def language():
    """Return an ensemble for a language model, and its prompts one by one."""
    task, folder = TASKS.build("causal_lm"), resolve_model("tiny_lm")
    tiny = task, task.tokenise(load_dataset("tiny_lm").train.take(ROWS), folder, 16), folder, 0
    case = Case(SPEC, tiny)
    case.start["prompts.weight"] *= 20
    case.sequential.load(case.start)
    models = []
    for prompt in case.start["prompts.weight"].split(4):
        model = create_model(PEFT_METHODS.build("prompt_tuning(length=4)"), tiny, "fp64")
        saved_adapter.put(model, {"prompt_encoder.embedding.weight": prompt})
        models.append(model)
    return case, models


def test_a_language_model_mixes_the_next_tokens_of_its_prompts(language):
    case, one_by_one = language
    batch, shares = case.rows.batch(ROWS), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    try:
        for given in (None, shares):
            case.model.shares = given
            weights = torch.full((3,), 1 / 3, dtype=torch.float64) if given is None else given
            with torch.no_grad():
                each = torch.stack([model(batch).softmax(-1) for model in one_by_one])
                assert float((each - each.mean(0)).abs().max()) > 5e-4
                mixed = torch.einsum("m,mbtv->btv", weights, each)
                assert torch.allclose(case.model(batch).exp(), mixed, atol=1e-12)
                expected, losses = case.task.losses(mixed.log(), batch), case.task.row_losses(case.model, batch)
            assert case.model.row_losses(batch) is not None, "without the logits of all positions"
            assert torch.allclose(losses.sums, expected.sums, atol=1e-10)
            assert torch.equal(losses.correct, expected.correct)
    finally:
        case.model.shares = None


def test_each_prompt_of_a_language_model_learns_as_if_alone(language):
    case, one_by_one = language
    batch = case.rows.batch(ROWS)
    losses = case.task.step_losses(case.model, batch)
    [prompts] = torch.autograd.grad(losses.sums.sum(), list(find_trainable(case.model).values()))
    alone = [case.task.row_losses(model, batch).sums for model in one_by_one]
    expected = [
        torch.autograd.grad(sums.sum() / 3, list(find_trainable(model).values()))[0]
        for sums, model in zip(alone, one_by_one, strict=True)
    ]
    assert torch.allclose(prompts, torch.cat(expected), atol=1e-12)
    assert torch.allclose(losses.sums, sum(alone) / 3, atol=1e-10)
    fitted = case.method.fit_when_finished(case.model, case.rows)[SHARES]
    case.model.shares = None
    means = torch.stack(alone).detach().sum(1) / float(losses.counts.sum())
    assert torch.allclose(fitted.double(), (-means / case.method.temperature).softmax(0), atol=1e-6)


def test_an_answer_is_the_likeliest_token_of_the_mixture_one_after_the_other(language):
    case, one_by_one = language
    prompts = [[5, 6], [12, 8, 9]]
    answers = generate_tokens(case.model, load_tokenizer(case.folder), prompts, 3)
    assert sum(map(len, answers)) > 2
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for token in answer:
            batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            with torch.no_grad():
                each = torch.stack([model.predict(batch)[0, -1].softmax(-1) for model in one_by_one])
            assert int(each.mean(0).argmax()) == token
            ids.append(token)


def test_it_needs_probabilities_of_classes_or_tokens():
    with refuses("FP4067"):
        PEFT_METHODS.build(SPEC).attach(FederatedModel(), "fp32")


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

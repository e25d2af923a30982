"""Laplace-LoRA from Kronecker factors: against dense matrices, and the exact Gauss-Newton where they are exact."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fedpeft.clients.curvature import compute_kronecker_sums, compute_logit_gradients
from fedpeft.clients.lora_layers import find_lora_layers
from scipy.optimize import minimize_scalar

from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.trust.kronecker import (
    Curvature,
    apply_probit,
    compute_covariance,
    compute_evidence,
    find_best_variance,
    name_sums,
)
from fedpeft.wiring.setup import load_adapted_model

OUT, IN, CLASSES = 3, 7, 4


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(seed=0, tokens=20):
    a, g = drawn(tokens, IN, seed=seed), drawn(tokens, OUT, seed=seed + 1)
    return a.T @ a, g.T @ g, float(tokens)


def dense(inputs, outputs, tokens):
    """H of vec(W), rows of W one after another."""
    return torch.kron(outputs, inputs / tokens)


@pytest.mark.parametrize("variance", [1e-3, 0.5, 30.0])
def test_the_covariance_is_that_of_the_dense_inverse(variance):
    inputs, outputs, tokens = factors()
    curvature = Curvature.from_sums(inputs, outputs, tokens, rank=IN)
    hessian = dense(inputs, outputs, tokens)
    gradients_by_class = drawn(CLASSES, OUT, IN, seed=5)
    expected = (
        gradients_by_class.flatten(1)
        @ torch.linalg.inv(hessian + torch.eye(len(hessian)) / variance)
        @ gradients_by_class.flatten(1).T
    )
    torch.testing.assert_close(
        curvature.compute_covariance(gradients_by_class, variance), expected, rtol=1e-6, atol=1e-9
    )
    determinant = torch.linalg.slogdet(torch.eye(len(hessian)) + variance * hessian)[1]
    assert curvature.compute_log_determinant(variance) == pytest.approx(float(determinant), rel=1e-9)


def test_of_few_directions_it_is_the_dense_inverse_of_the_truncated_matrix():
    inputs, outputs, tokens = factors()
    curvature = Curvature.from_sums(inputs, outputs, tokens, rank=3)
    values, vectors = torch.linalg.eigh(inputs)
    kept = vectors[:, -3:] * values[-3:] @ vectors[:, -3:].T
    hessian = dense(kept, outputs, tokens)
    gradients_by_class = drawn(CLASSES, OUT, IN, seed=5)
    expected = (
        gradients_by_class.flatten(1)
        @ torch.linalg.inv(hessian + torch.eye(len(hessian)) / 0.5)
        @ gradients_by_class.flatten(1).T
    )
    torch.testing.assert_close(curvature.compute_covariance(gradients_by_class, 0.5), expected, rtol=1e-6, atol=1e-9)


def test_the_evidence_is_that_of_the_dense_gaussian():
    """It is log N(W; 0, s2 I) + LL + n/2 log 2 pi - 1/2 logdet(H + I / s2) without terms that do not depend on s2."""
    inputs, outputs, tokens = factors()
    curvature, weight = Curvature.from_sums(inputs, outputs, tokens, rank=IN), 0.3 * drawn(OUT, IN, seed=8)
    hessian, n = dense(inputs, outputs, tokens), OUT * IN

    def direct(variance):
        prior = -n / 2 * math.log(variance) - float(weight.square().sum()) / (2 * variance)
        return prior - 7.0 - float(torch.linalg.slogdet(hessian + torch.eye(n) / variance)[1]) / 2

    for variance in (0.01, 0.2, 5.0):
        found = compute_evidence({"W": curvature}, float(weight.square().sum()), -7.0, variance)
        assert found == pytest.approx(direct(variance), rel=1e-9)
    found = find_best_variance({"W": curvature}, {"W": weight}, -7.0)
    least = minimize_scalar(lambda x: -direct(math.exp(x)), bounds=(-13, 9), method="bounded")
    assert found == pytest.approx(math.exp(least.x), rel=1e-3)


def test_uncertain_logits_make_modest_predictions():
    logits = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    sure, unsure = (apply_probit(logits, v * torch.eye(3, dtype=torch.float64)) for v in (0.0, 10.0))
    torch.testing.assert_close(sure, logits.softmax(-1))
    assert sure[0] > unsure[0] > 1 / 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    task, method = TASKS.build("classification"), PEFT_METHODS.build("lora(rank=2, layers=1)")
    made = load_adapted_model(task, Path(resolve_model("tiny")), method, "fp64", CLASSES).eval()
    with torch.no_grad():
        made.head.weight.normal_(0, 1)
        for linear in find_lora_layers(made).values():
            linear.weight.normal_(0, 0.2)
    return made


def batch(rows, tokens, seed=0):
    random = np.random.default_rng(seed)
    ids = torch.from_numpy(random.integers(5, 50, size=(rows, tokens)))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.from_numpy(np.arange(rows) % CLASSES),
    }


def test_of_one_row_and_token_it_is_the_exact_gauss_newton(model):
    one = batch(1, 1)
    sums = compute_kronecker_sums(model, [one])
    logits, gradients = compute_logit_gradients(model, one)
    p = logits.softmax(-1)
    for name, (inputs, outputs) in name_sums({n: w.weight.shape for n, w in find_lora_layers(model).items()}).items():
        jacobian = gradients[name].flatten(1)
        exact = jacobian.T @ (torch.diag(p) - p[:, None] * p) @ jacobian
        found = dense(sums[inputs], sums[outputs], float(sums["tokens"]))
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-12)


def test_of_more_tokens_the_error_is_what_it_is(model):
    """KFAC is an approximation there: within a factor of ten of the exact trace, and not equal."""
    rows = batch(6, 5)
    sums = compute_kronecker_sums(model, [rows])
    exact = 0.0
    for k in range(6):
        one = {name: tensor[k : k + 1] for name, tensor in rows.items()}
        logits, gradients = compute_logit_gradients(model, one)
        p = logits.softmax(-1)
        for jacobian in gradients.values():
            exact += float(torch.trace(jacobian.flatten(1).T @ (torch.diag(p) - p[:, None] * p) @ jacobian.flatten(1)))
    found = 0.0
    for inputs, outputs in name_sums({n: w.weight.shape for n, w in find_lora_layers(model).items()}).values():
        found += float(torch.trace(sums[inputs]) / sums["tokens"] * torch.trace(sums[outputs]))
    assert found != pytest.approx(exact, rel=1e-3)
    assert 0.1 < found / exact < 10


def test_sums_over_clients_are_those_of_all_rows(model):
    rows = batch(7, 4)
    parts = [{name: tensor[a:b] for name, tensor in rows.items()} for a, b in ((0, 3), (3, 7))]
    whole = compute_kronecker_sums(model, [rows])
    apart = [compute_kronecker_sums(model, [part]) for part in parts]
    for name, tensor in whole.items():
        torch.testing.assert_close(apart[0][name] + apart[1][name], tensor, rtol=1e-8, atol=1e-12)


def test_padding_is_no_token(model):
    rows = batch(3, 4)
    padded = {
        "input_ids": torch.nn.functional.pad(rows["input_ids"], (0, 3)),
        "attention_mask": torch.nn.functional.pad(rows["attention_mask"], (0, 3)),
        "labels": rows["labels"],
    }
    one, other = compute_kronecker_sums(model, [rows]), compute_kronecker_sums(model, [padded])
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-6, atol=1e-9)


def test_covariances_of_matrices_add_up(model):
    one = batch(1, 3)
    sums = compute_kronecker_sums(model, [one])
    curvatures = {
        name: Curvature.from_sums(sums[inputs], sums[outputs], float(sums["tokens"]))
        for name, (inputs, outputs) in name_sums(
            {n: w.weight.shape for n, w in find_lora_layers(model).items()}
        ).items()
    }
    _, gradients = compute_logit_gradients(model, one)
    found = compute_covariance(curvatures, gradients, 0.1, CLASSES)
    assert torch.linalg.eigvalsh(found).min() > -1e-9
    prior = 0.1 * sum(G.flatten(1) @ G.flatten(1).T for G in gradients.values())
    assert torch.linalg.eigvalsh(prior - found).min() > -1e-9  # rows make it surer

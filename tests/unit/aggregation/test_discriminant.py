"""Linear discriminant analysis from sums: what it is, and where it is better than the regression on the same sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fedpeft.aggregation.head_start import convert_to_summands
from fedpeft.aggregation.update import Fold
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.parts.families import HEADS
from tests.refusals import refuses

WIDTH = 8


def drawn(counts, apart, seed=0):
    """Draw normal examples (n, WIDTH), `counts` per class, around means that lie about `apart` apart; with labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    means = apart * torch.randn(len(counts), WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    spread = torch.logspace(0, -1, WIDTH, dtype=torch.float64)
    noise = torch.randn(len(labels), WIDTH, generator=generator, dtype=torch.float64)
    return means[labels] + noise * spread + 2.0, labels


def summed(head, features, labels, classes, shards):
    total = Fold()
    for rows in shards:
        total.add(convert_to_summands(head, head.statistics(features[rows], labels[rows], classes)), 1.0)
    return head.solve(total.sums, WIDTH, classes)


def logits(solved, features):
    return features @ solved["head.weight"].T + solved["head.bias"]


def test_it_is_scikit_learns_where_classes_lie_far_apart():
    """There each mean is believed. Theirs divides the scatter by n, ours by n less the classes."""
    counts = [40, 70, 25]
    features, labels = drawn(counts, apart=1e4)
    head = HEADS.build("discriminant(strength=1e-12, scale=1.0)")
    ours = logits(summed(head, features, labels, 3, np.array_split(np.arange(135), 4)), features)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(features.numpy(), labels.numpy())
    priors = np.log(np.array(counts) / 135)
    expected = (theirs.decision_function(features.numpy()) - priors) * (135 - 3) / 135 + priors
    found, expected = (a - a[:, :1] for a in (ours.numpy(), expected))
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], rtol=1e-4)


@pytest.mark.parametrize("strength", [None, 0.2])
def test_it_is_what_its_formula_says_of_the_rows(strength):
    """Recomputed row by row and class by class, with a class that nobody has."""
    counts = [30, 5, 1, 0, 64]
    features, labels = drawn(counts, apart=0.7)
    x, y = features.numpy(), labels.numpy()
    given = "discriminant" if strength is None else f"discriminant(strength={strength})"
    solved = summed(HEADS.build(given), features, labels, 5, np.array_split(np.arange(100), 3))

    there = [c for c in range(5) if counts[c]]
    mean = x.mean(0)
    scatter = sum(np.cov(x[y == c].T, bias=True) * counts[c] if counts[c] > 1 else 0 for c in there)
    within = scatter / (100 - len(there))
    per_row = np.trace(within)
    apart = sum(counts[c] * np.sum((x[y == c].mean(0) - mean) ** 2) for c in there)
    between = (apart - (len(there) - 1) * per_row) / (100 - sum(n * n for n in counts) / 100)
    shrink = min(WIDTH / 100, 1.0) if strength is None else strength
    inverse = np.linalg.inv(within + shrink * per_row / WIDTH * np.eye(WIDTH))
    for c in range(5):
        n = counts[c]
        own = mean + n / (n + per_row / between) * (x[y == c].mean(0) - mean) if n else mean
        w = inverse @ (own - mean)
        b = np.log((n or 0.5) / 100) - w @ (own + mean) / 2
        np.testing.assert_allclose(solved["head.weight"][c], 0.6 * w, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(solved["head.bias"][c], 0.6 * b, rtol=1e-8)


def test_the_factor_gives_the_same_head():
    features, labels = drawn([30, 5, 1, 64], apart=0.7)
    plain = HEADS.build("discriminant")
    one, other = (
        summed(head, features, labels, 4, np.array_split(np.arange(100), 9)) for head in (plain, plain.compact())
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-8, atol=1e-10)


def test_small_classes_are_found_that_a_regression_passes_over():
    counts = [400, 40, 8, 8, 8, 8]
    (features, labels), (unseen, right) = (drawn(counts, apart=0.6, seed=seed) for seed in (0, 1))
    found = {}
    for name in ("ridge", "discriminant"):
        said = logits(summed(HEADS.build(name), features, labels, 6, [np.arange(len(labels))]), unseen).argmax(1)
        found[name] = [float((said[right == c] == c).double().mean()) for c in range(6)]
    assert np.mean(found["discriminant"][2:]) > np.mean(found["ridge"][2:]) + 0.2


def test_classes_that_differ_by_noise_alone_are_told_by_their_size():
    """The means' variance is estimated at nothing, and so is what they tell."""
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(50, WIDTH, generator=generator, dtype=torch.float64)
    features, labels = torch.cat([half, half]), torch.arange(100) // 50
    solved = summed(HEADS.build("discriminant"), features, labels, 2, [np.arange(100)])
    assert not solved["head.weight"].any()
    torch.testing.assert_close(solved["head.bias"], 0.6 * torch.full((2,), 0.5, dtype=torch.float64).log())


@pytest.mark.parametrize(("preset", "each"), [("", 10), ("tiny", 50)])
def test_coarse_codes_of_many_clients_of_few_rows_leave_what_they_leave_of_ridge(preset, each):
    """They can make variances within classes negative, whose inverse would be of the largest."""
    classes, width, draws = 20, 96, torch.Generator().manual_seed(2)
    labels = torch.randint(classes, (600,), generator=draws)
    spread = torch.logspace(0, -1.5, width, dtype=torch.float64)
    means = torch.randn(classes, width, generator=draws, dtype=torch.float64)
    features = 1.0 + spread * (means[labels] + torch.randn(600, width, generator=draws, dtype=torch.float64))
    right = {}
    for name in ("ridge", "discriminant"):
        head, total = HEADS.build(name).compact(), Fold()
        for k in range(600 // each):
            rows = np.arange(each * k, each * k + each)
            made = head.statistics(features[rows].float(), labels[rows], classes)
            payload = parse_codec(head.codec(preset)).encode(made, seed=k, weights=head.importance(made))
            total.add(convert_to_summands(head, decode(payload, head.shapes(width, classes, each))), 1.0)
        solved = head.solve(total.sums, width, classes)
        right[name] = float((logits(solved, features).argmax(1) == labels).double().mean())
    assert right["discriminant"] > right["ridge"] - 0.05 > 0.3, right


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("each", [1, 2])
def test_of_classes_that_show_no_variance_each_row_is_found(each, precision):
    features = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(precision)
    labels = torch.arange(5).repeat(each)
    solved = summed(HEADS.build("discriminant"), features.repeat(each, 1), labels, 5, [np.arange(5 * each)])
    said = logits(solved, features.double())
    assert (said.argmax(1) == torch.arange(5)).all()
    assert solved["head.weight"].abs().max() < 1e5


def test_no_rows_at_all_leave_a_finite_head():
    head = HEADS.build("discriminant")
    shapes = head.shapes(WIDTH, 3, 0)
    lost = head.solve({name: torch.zeros(shape) for name, shape in shapes.items()}, WIDTH, 3)
    assert all(tensor.isfinite().all() for tensor in lost.values())


def test_a_wide_covariance_is_the_same(monkeypatch):
    """Decomposed only where a coarse code has left something negative."""
    features, labels = drawn([30, 5, 1, 64], apart=0.7)
    head = HEADS.build("discriminant")
    usual = summed(head, features, labels, 4, [np.arange(100)])
    monkeypatch.setattr("fedpeft.aggregation.heads.discriminant.WIDE", 4)
    monkeypatch.setattr(torch.linalg, "eigh", None)
    wide = summed(head, features, labels, 4, [np.arange(100)])
    for name in usual:
        torch.testing.assert_close(wide[name], usual[name], rtol=1e-8, atol=1e-10)


def test_it_starts_from_classes():
    with refuses("FP1013"):
        HEADS.build("discriminant").fit_to_targets("numbers")

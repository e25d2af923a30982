import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from fedpeft.codec import decode, parse_codec
from fedpeft.head_start import HEADS
from fedpeft.strategy import Fold

WIDTH, CLASSES = 6, 3


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % CLASSES
    means = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    return means[labels] + torch.randn(90, WIDTH, generator=generator, dtype=torch.float64), labels


def summed(head, features, labels, shards):
    total = Fold()
    for rows in shards:
        total.add(head.additive(head.statistics(features[rows], labels[rows], CLASSES)), 1.0)
    return head.solve(total.sums, WIDTH, CLASSES)


@pytest.mark.parametrize("name", [n for n in HEADS.names if HEADS.build(n).exchanges])
def test_the_head_is_that_of_the_pooled_data_whatever_the_partition(name, data):
    features, labels = data
    head = HEADS.build(name)
    by_class = [np.flatnonzero(labels.numpy() == c) for c in range(CLASSES)]
    pooled = summed(head, features, labels, [np.arange(90)])
    skewed = summed(head, features, labels, by_class)
    for tensor in pooled:
        assert torch.allclose(pooled[tensor], skewed[tensor], rtol=1e-9, atol=1e-12)
    accuracy = ((features @ pooled["head.weight"].T + pooled["head.bias"]).argmax(1) == labels).double().mean()
    assert accuracy > 0.7
    assert {n: tuple(t.shape) for n, t in head.statistics(features, labels, CLASSES).items()} == head.shapes(
        WIDTH, CLASSES, 90
    )


def test_ridge_equals_scikit_learns(data):
    features, labels = data
    head = HEADS.build("ridge(strength=0.01, scale=5.0)")
    got = summed(head, features, labels, [np.arange(90)])
    one_hot = np.eye(CLASSES)[labels.numpy()]
    penalty = 0.01 * float((features**2).sum(0).mean())
    expected = Ridge(alpha=penalty).fit(features.numpy(), 5.0 * one_hot)
    assert np.allclose(got["head.weight"].numpy(), expected.coef_, rtol=1e-8)
    assert np.allclose(got["head.bias"].numpy(), expected.intercept_, rtol=1e-8)


@pytest.mark.parametrize("rows", [3, 30])
def test_the_factor_of_the_moments_gives_the_same_head(rows, data):
    """Also where a client has fewer rows than there are features."""
    features, labels = data
    shards = [np.arange(i, i + rows) for i in range(0, 90 - rows + 1, rows)]
    plain, factored = HEADS.build("ridge"), HEADS.build("ridge").compact()
    made = factored.statistics(features[:rows], labels[:rows], CLASSES)
    assert {n: tuple(t.shape) for n, t in made.items()} == factored.shapes(WIDTH, CLASSES, rows)
    assert len(made["labels"]) == min(rows, WIDTH + 1 + CLASSES)
    one, other = (summed(head, features, labels, shards) for head in (plain, factored))
    for name in one:
        assert torch.allclose(one[name], other[name], rtol=1e-8, atol=1e-10)


def test_the_factor_bears_coarse_codes_and_the_moments_do_not():
    """Features with a large common part and directions of little variance, as a language model's have."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -2, 24, dtype=torch.float64)
    labels = torch.arange(400) % CLASSES
    means = torch.randn(CLASSES, 24, generator=generator, dtype=torch.float64)
    features = 1.0 + spread * (means[labels] + torch.randn(400, 24, generator=generator, dtype=torch.float64))
    errors = []
    for head in (HEADS.build("ridge"), HEADS.build("ridge").compact()):
        total, exact = Fold(), Fold()
        for k in range(20):
            rows = np.arange(20 * k, 20 * k + 20)
            made = head.statistics(features[rows].float(), labels[rows], CLASSES)
            payload = parse_codec("adaptive(bits=6.0, per=row) | rans").encode(made, weights=head.importance(made))
            total.add(head.additive(decode(payload, head.shapes(24, CLASSES, 20))), 1.0)
            exact.add(head.additive(made), 1.0)
        coarse, true = (head.solve(f.sums, 24, CLASSES)["head.weight"] for f in (total, exact))
        errors.append(float((coarse - true).norm() / true.norm()))
    assert errors[1] < 0.25 * errors[0]

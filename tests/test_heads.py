import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

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
        total.add(head.statistics(features[rows], labels[rows], CLASSES), 1.0)
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
        WIDTH, CLASSES
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

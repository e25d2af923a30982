"""What a client adds to a sum with shared noise: the sum of its rows' clipped gradients, whatever the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedpeft.clients.example_gradients import compute_row_means
from fedpeft.clients.executor import RowPrivacy

from fedpeft.models.task import find_trainable
from fedpeft.privacy.noise import RunKey
from tests.unit.clients.test_per_example import KEY, executors, job

CLIP = 0.05


def summed(private, layout, received, rows, rate=1.0, key=KEY, clip=CLIP):
    work = job(layout, received, np.asarray(rows), RowPrivacy(clip, 0.0, rate, key, 0, summed=True))
    return next(private.train([work])).state


def test_it_is_the_sum_of_gradients_each_clipped():
    """Against one row at a time, by autograd; half of them are longer than C."""
    _, private, layout, received = executors()
    rows, chosen, each = range(40), find_trainable(private.model), []
    for row in rows:
        batch = private.batch(np.array([row]))
        loss = compute_row_means(private.task.losses(private.model(batch), batch)).sum()
        each.append(torch.autograd.grad(loss, list(chosen.values()), allow_unused=True, materialize_grads=True))
    lengths = [sum(float(g.square().sum()) for g in gradients) ** 0.5 for gradients in each]
    clip = sorted(lengths)[len(lengths) // 2]
    assert min(lengths) < clip < max(lengths)
    expected = {n: torch.zeros_like(t) for n, t in received.items()}
    for gradients, length in zip(each, lengths, strict=True):
        for name, gradient in zip(chosen, gradients, strict=True):
            expected[name] += gradient * min(1.0, clip / length)
    found = summed(private, layout, received, rows, clip=clip)
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], tensor, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_a_row_more_or_less_changes_it_by_at_most_c(rate):
    """Rows of several lengths, so that others are padded otherwise without it; by brute force over all rows."""
    _, private, layout, received = executors()
    rows = list(range(9))
    whole = summed(private, layout, received, rows, rate)
    farthest = 0.0
    for gone in rows:
        if rate < 1:  # the coin of a row is that of its place: the last one may be missing
            gone = rows[-1]
        other = summed(private, layout, received, [row for row in rows if row != gone], rate)
        apart = sum(float((whole[n] - other[n]).square().sum()) for n in whole) ** 0.5
        assert apart <= CLIP * (1 + 1e-6)
        farthest = max(farthest, apart)
    assert farthest > 0.5 * CLIP or rate < 1


def test_rows_are_drawn_by_the_key_and_none_may_be():
    _, private, layout, received = executors()
    first = summed(private, layout, received, range(10), 0.5)
    again = summed(private, layout, received, range(10), 0.5)
    other = summed(private, layout, received, range(10), 0.5, key=RunKey(bytes(32)))
    none = summed(private, layout, received, range(10), 1e-9)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)
    assert not any(tensor.any() for tensor in none.values())


def test_a_row_whose_gradient_overflows_counts_as_none(monkeypatch):
    _, private, layout, received = executors()
    without = summed(private, layout, received, [1, 2, 3])
    fill = private._fill

    def spoilt(rows, chosen):
        losses = fill(rows, chosen)
        for parameter in chosen.values():
            parameter.grad_sample[np.flatnonzero(rows == 0)] = float("nan")
        return losses

    monkeypatch.setattr(private, "_fill", spoilt)
    found = summed(private, layout, received, [0, 1, 2, 3])
    assert all(torch.allclose(found[n], without[n], rtol=1e-6, atol=1e-12) for n in found)

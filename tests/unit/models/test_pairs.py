"""Losses and judgements of pairs against sums that are written out, one entry at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpeft.models.pair_losses import compute_infonce_loss, compute_sigmoid_loss
from fedpeft.models.ranking import PairSides, rank_documents, rank_queries
from fedpeft.models.task import GROUPS
from fedpeft.models.tasks.retrieval import Retrieval


def slow_infonce(s, negative, scale):
    losses = []
    for i in range(len(s)):
        row = math.exp(scale * s[i][i]) + sum(math.exp(scale * s[i][j]) for j in range(len(s)) if negative[i][j])
        column = math.exp(scale * s[i][i]) + sum(math.exp(scale * s[j][i]) for j in range(len(s)) if negative[j][i])
        own = math.exp(scale * s[i][i])
        losses.append(-(math.log(own / row) + math.log(own / column)) / 2)
    return losses


def slow_sigmoid(s, negative, scale, bias):
    losses = []
    for i in range(len(s)):
        total = -math.log(1 / (1 + math.exp(-(scale * s[i][i] + bias))))
        for j in range(len(s)):
            if negative[i][j]:
                total -= math.log(1 / (1 + math.exp(scale * s[i][j] + bias)))
        losses.append(total)
    return losses


def sides(seed: int, rows: int, labels) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(rows, 2, 5, dtype=torch.float64, generator=generator)
    return both, torch.tensor(labels)[:, None].expand(rows, 2)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 0], [0, 0, 0, 0, 0, 0], [7]])
def test_losses_are_the_papers_sums(labels) -> None:
    both, given_labels = sides(1, len(labels), labels)
    unit = both / both.norm(dim=-1, keepdim=True)
    s = [[float(sum(a * b for a, b in zip(x, y, strict=True))) for y in unit[:, 1]] for x in unit[:, 0]]
    negative = [[a != b for b in labels] for a in labels]
    batch = {"labels": given_labels}
    found = Retrieval(scale=3.0).losses(both, batch).sums
    expected = torch.tensor(slow_infonce(s, negative, 3.0), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    found = Retrieval(loss="sigmoid", scale=3.0, bias=-1.5).losses(both, batch).sums
    expected = torch.tensor(slow_sigmoid(s, negative, 3.0, -1.5), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    found = Retrieval(loss="sigmoid", scale=3.0).losses(both, batch).sums
    for i, row in enumerate(negative):
        own = slow_sigmoid(s, negative, 3.0, -math.log(max(1, sum(row))))[i]
        assert float(found[i]) == pytest.approx(own, abs=1e-10)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_clients_that_share_a_batch_are_compared_with_their_own_rows_alone(loss: str) -> None:
    task = Retrieval(loss=loss)
    both, labels = sides(2, 7, range(7))
    groups = torch.tensor([0, 0, 0, 1, 1, 1, -1])  # the last row fills up the second client
    together = task.losses(both, {"labels": labels, GROUPS: groups})
    for rows in (slice(0, 3), slice(3, 6)):
        alone = task.losses(both[rows], {"labels": labels[rows]})
        torch.testing.assert_close(together.sums[rows], alone.sums, rtol=0, atol=1e-12)
        assert torch.equal(together.correct[rows], alone.correct)


def test_what_is_no_nearer_than_a_wrong_document_is_not_found() -> None:
    same = torch.ones(4, 2, 3, dtype=torch.float64)
    labels = torch.arange(4)
    assert Retrieval().losses(same, {"labels": labels[:, None]}).correct.sum() == 0
    unit = torch.nn.functional.normalize(same, dim=-1)
    found = rank_documents(PairSides(unit[:, 0], unit[:, 1], labels))
    assert found["recall_at_1"] == 0
    assert found["mrr"] == pytest.approx(1 / 4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_rankings_are_those_of_sorting_by_hand(seed: int, labels: list[int]) -> None:
    both, _ = sides(seed, len(labels), labels)
    places = {label: k for k, label in reversed(list(enumerate(labels)))}  # where each label comes first
    for i, label in enumerate(labels):
        both[i, 1] = both[places[label], 1]  # one label, one document
    unit = torch.nn.functional.normalize(both, dim=-1)
    given_sides = PairSides(unit[:, 0], unit[:, 1], torch.tensor(labels))
    order = sorted(places.values())
    s = (unit[:, 0] @ unit[:, 1].T).numpy()
    ranks = [
        1 + sum(s[i][j] >= s[i][places[labels[i]]] for j in order if labels[j] != labels[i]) for i in range(len(s))
    ]
    check(rank_documents(given_sides), ranks, len(labels), len(order))
    back = []
    for j in order:
        best = max(s[i][j] for i in range(len(s)) if labels[i] == labels[j])
        back.append(1 + sum(s[i][j] >= best for i in range(len(s)) if labels[i] != labels[j]))
    check(rank_queries(given_sides), back, len(order), len(labels))


def check(found, ranks, queries, documents) -> None:
    assert (found["queries"], found["documents"]) == (queries, documents)
    assert found["mrr"] == pytest.approx(np.mean([1 / r for r in ranks]))
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] == pytest.approx(np.mean([r <= k for r in ranks]))


def test_scale_and_bias_mean_what_they_say() -> None:
    s = torch.eye(2, dtype=torch.float64)
    negative = ~torch.eye(2, dtype=torch.bool)
    assert compute_infonce_loss(s, negative, 2.0, 0.0).tolist() == pytest.approx([math.log(1 + math.exp(-2.0))] * 2)
    assert compute_sigmoid_loss(s, negative, 2.0, -1.0).tolist() == pytest.approx(
        [2 * math.log(1 + math.exp(-1.0))] * 2
    )

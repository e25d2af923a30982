"""Sums over rows for a head's start: their sensitivity, their noise, and what heads bear of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedpeft.aggregation.bounded_rows import (
    LENGTH_BOUND,
    compute_length_sums,
    compute_typical_length,
    find_hidden_classes,
    normalize_rows,
)
from fedpeft.aggregation.head_start import VARIANCE, HidesClasses
from fedpeft.aggregation.heads.private_ridge import create_projection, flatten_symmetric, unflatten_symmetric
from fedpeft.parts.families import HEADS, MECHANISMS
from fedpeft.peft.adapter import compute_norm
from fedpeft.privacy.noise import RunKey
from fedpeft.privacy.start_release import add_noise, clip_block

WIDTH, CLASSES = 5, 3
BOUNDED = [name for name in HEADS.names if HEADS.build(name).bounded]
KEY = RunKey(b"k" * 32)


def apart(head, features, labels, without):
    """How far statistics move where the row `without` is left out."""
    rows = [i for i in range(len(labels)) if i != without]
    one, other = (head.statistics(features[i], labels[i], CLASSES) for i in (list(range(len(labels))), rows))
    return compute_norm({name: one[name] - other[name] for name in one})


# ------------------------------------------------------------------------------------------------------- sensitivities


def strange_rows():
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(12, WIDTH, generator=generator, dtype=torch.float64)
    axes = torch.eye(WIDTH, dtype=torch.float64) * 7
    huge, small = plain[:3] * 1e30, plain[3:6] * 1e-30
    broken = torch.tensor([[math.nan] * WIDTH, [math.inf, *[1.0] * (WIDTH - 1)], [0.0] * WIDTH]).double()
    one_class = torch.ones(4, WIDTH, dtype=torch.float64)
    return torch.cat([plain, axes, huge, small, broken, one_class])


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_more_or_less_moves_the_statistics_by_at_most_one(name, dtype):
    """Whatever the row is: huge, of one entry, not a number; and the bound is nearly met."""
    features = strange_rows().to(dtype)
    labels = torch.arange(len(features)) % CLASSES
    labels[-4:] = 1
    for head in (HEADS.build(name), HEADS.build("private_ridge(dimensions=2)") if name == "private_ridge" else None):
        if head is not None:
            moved = [apart(head, features, labels, row) for row in range(len(features))]
            assert max(moved) <= 1 + 1e-9
            assert max(moved) > 0.99, "the bound is not a loose one"


def test_moments_as_a_vector_keep_their_norm():
    x = torch.randn(6, 4, dtype=torch.float64)
    matrix = x.T @ x
    assert float(flatten_symmetric(matrix).norm()) == pytest.approx(float(matrix.norm()))
    assert torch.allclose(unflatten_symmetric(flatten_symmetric(matrix)), matrix)


def test_the_projection_is_the_same_everywhere_and_keeps_angles():
    projection = create_projection(8, 3)
    assert torch.equal(projection, create_projection.__wrapped__(8, 3))
    assert torch.allclose(projection @ projection.T, torch.eye(3, dtype=torch.float64))
    assert create_projection(4, 64).shape == (4, 4)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_client_s_block_is_clipped_as_one_vector(name):
    """Client with any rows against no client: at most 1; two clients: at most 2."""
    head, generator = HEADS.build(name), torch.Generator().manual_seed(1)
    user, local = MECHANISMS.build("user_dp(epsilon=1)"), MECHANISMS.build("local_dp(epsilon=1)")
    blocks = []
    for rows in (1, 3, 40):
        features = torch.randn(rows, WIDTH, generator=generator)
        labels = torch.randint(0, CLASSES, (rows,), generator=generator)
        statistics = head.statistics(features, labels, CLASSES)
        blocks.append(user.start_release.take(statistics))
        assert compute_norm(statistics) == pytest.approx(compute_norm(blocks[-1])) or compute_norm(
            blocks[-1]
        ) == pytest.approx(1)
        silent = local.start_release.protect(statistics, 0.0, KEY, (0, 1))
        assert all(torch.equal(silent[n], blocks[-1][n]) for n in silent)
    bad = {n: torch.full_like(t, math.nan) for n, t in blocks[0].items()} | {VARIANCE: torch.zeros(1)}
    assert compute_norm(clip_block(bad)) == 0
    assert max(compute_norm(block) for block in blocks) <= 1 + 1e-9
    assert max(compute_norm({n: a[n] - b[n] for n in a}) for a in blocks for b in blocks) <= 2


# --------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("mechanism", "deviation"), [("dp_sgd", 3.0), ("local_dp", 6.0), ("user_dp", 3.0)])
def test_noise_has_the_stated_scale_and_is_told_of(mechanism, deviation):
    release = MECHANISMS.build(f"{mechanism}(epsilon=1)").start_release
    zeros = {"sums": torch.zeros(60, 200, dtype=torch.float64), VARIANCE: torch.zeros(1, dtype=torch.float64)}
    clients = [release.take(release.protect(zeros, 3.0, KEY, (0, k))) for k in range(2)]
    if mechanism == "user_dp":
        assert all(torch.equal(sent["sums"], zeros["sums"]) for sent in clients), "the server adds the noise, once"
        clients = [release.finish(zeros, 3.0, KEY, attempt) for attempt in range(2)]
    for sent in clients:
        values = sent["sums"].flatten().numpy()
        assert float(sent[VARIANCE]) == deviation**2
        assert abs(values.mean()) < 5 * deviation / math.sqrt(len(values))
        assert np.std(values) == pytest.approx(deviation, rel=0.03)
    one, other = (sent["sums"].flatten().numpy() for sent in clients)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05, "everyone has noise of its own"


def test_the_noise_is_the_client_s_attempt_s_and_key_s():
    made, zeros = MECHANISMS.build("dp_sgd(epsilon=1)"), {"sums": torch.zeros(3, 4), VARIANCE: torch.zeros(1)}

    def drawn(key, ids):
        return made.start_release.protect(zeros, 1.0, key, ids)["sums"]

    assert torch.equal(drawn(KEY, (0, 1)), drawn(KEY, (0, 1)))
    assert not torch.equal(drawn(KEY, (0, 1)), drawn(KEY, (1, 0)))
    assert not torch.equal(drawn(KEY, (0, 1)), drawn(RunKey(b"x" * 32), (0, 1)))


# --------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("name", BOUNDED)
def test_the_head_survives_noise_that_its_rows_can_bear(name):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % CLASSES
    means = 4 * torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    features = 100 * (means[labels] + torch.randn(900, WIDTH, generator=generator, dtype=torch.float64))
    head = HEADS.build(name)
    total = add_noise(head.statistics(features, labels, CLASSES), 8.0, KEY.stream("noise"))
    solved = head.solve(total, WIDTH, CLASSES)
    logits = features @ solved["head.weight"].T + solved["head.bias"]
    assert float((logits.argmax(1) == labels).double().mean()) > 0.85
    assert float(logits.abs().max()) < 10 * head.scale, "logits have a size, whatever the features' lengths are"
    assert not isinstance(head, HidesClasses) or head.find_hidden_classes(total) == []


def test_lengths_are_told_within_a_factor_of_two_under_noise():
    features = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0)) * 0.3
    sums = compute_length_sums(features)
    true = float(features.norm(dim=1).log().mean().exp())
    assert compute_typical_length(sums) == pytest.approx(true, rel=1e-3)
    assert 0.5 < compute_typical_length(sums + torch.tensor([4.0, -4.0])) / true < 2
    assert compute_typical_length(torch.tensor([-3.0, 1.0])) == 1
    assert float(compute_length_sums(features[:1]).norm()) <= LENGTH_BOUND**0.5


def test_a_class_that_drowns_in_noise_loses_to_all_others():
    features = torch.eye(4, dtype=torch.float64).repeat(50, 1)
    labels = torch.arange(200) % 4
    keep = (labels != 2) | (torch.arange(200) < 5)
    head = HEADS.build("private_centroids")
    total = add_noise(head.statistics(features[keep], labels[keep], 4), 2.0, KEY.stream("noise"))
    assert head.find_hidden_classes(total) == [2]
    solved = head.solve(total, 4, 4)
    logits = features @ solved["head.weight"].T + solved["head.bias"]
    assert 2 not in logits.argmax(1)
    assert set(logits.argmax(1)[labels != 2].tolist()) == {0, 1, 3}
    assert not find_hidden_classes(torch.ones(2, 4), 0.0).any()


def test_directions_of_what_has_none():
    found = normalize_rows(torch.tensor([[math.nan, 1.0], [0.0, 0.0], [3.0, 4.0]]))
    assert found.tolist() == [[0.0, 0.0], [0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]

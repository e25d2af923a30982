"""Advice is measured on made cohorts: low-rank local training on clients whose targets are planted."""

import numpy as np
import pytest
import torch

from fedpeft.trust.groups import find_groups, place_in_plane

COHORTS = 50


def cohort(seed, kind):
    """Cosines of the clients' changes B_k A_k after local steps of SGD on rows of their own, and the planted truth.

    Each client fits y = W x + noise by W0 + B A from a common start. `iid`: one W; `groups`: two or three W's;
    `opposed`: one or two clients hold -W.
    """
    random = np.random.default_rng([seed, 77])
    clients, size, rank, rows = int(random.integers(8, 25)), 16, 4, 24
    target = random.normal(size=(size, size)) / 4
    truth = np.zeros(clients, int)
    if kind == "groups":
        count = int(random.integers(2, 4))
        truth = random.permutation(np.arange(clients) % count)
        own = random.normal(size=(count, size, size)) / 4 * random.uniform(1.0, 2.0)
    else:
        own = np.zeros((1, size, size))
    client_weights = target + own[truth]
    if kind == "opposed":
        truth[random.choice(clients, int(random.integers(1, 3)), replace=False)] = 1
        client_weights = np.where(truth[:, None, None] == 1, -client_weights, client_weights)
    x = random.normal(size=(clients, rows, size))
    y = np.einsum("koi,kri->kro", client_weights, x) + 0.3 * random.normal(size=(clients, rows, size))
    lora_a = torch.from_numpy(np.broadcast_to(random.normal(size=(rank, size)) / 4, (clients, rank, size)).copy())
    lora_b = torch.zeros(clients, size, rank, dtype=torch.float64)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(30):
        error = inputs @ (lora_b @ lora_a).mT - targets
        gradient = error.mT @ inputs / rows
        lora_a, lora_b = lora_a - 0.05 * lora_b.mT @ gradient, lora_b - 0.05 * gradient @ lora_a.mT
    flat = (lora_b @ lora_a).flatten(1).numpy()
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return flat @ flat.T, truth


def told(kind, first):
    """Of seeds that were not looked at when the thresholds were chosen (those were 0 to 49)."""
    return [(find_groups(cosines), truth) for cosines, truth in (cohort(first + s, kind) for s in range(COHORTS))]


def as_planted(found, truth):
    """Whether the groups are the planted ones, but for a client or two."""
    labels = np.full(len(truth), -1)
    for i, group in enumerate(found.groups):
        labels[list(group)] = i
    agree = sum(max(np.sum((labels == i) & (truth == t)) for t in np.unique(truth)) for i in range(len(found.groups)))
    return len(found.groups) == len(np.unique(truth)) and agree >= 0.9 * len(truth)


@pytest.mark.slow
def test_groups_are_found_and_iid_cohorts_raise_no_alarm():
    planted, iid = told("groups", 11_000), told("iid", 12_000)
    alarms = sum(len(found.groups) > 1 or bool(found.opposed) for found, _ in iid)
    right = sum(as_planted(found, truth) for found, truth in planted)
    said = sum(len(found.groups) > 1 for found, _ in planted)
    assert alarms <= 1
    assert right / COHORTS >= 0.8, "recall"
    assert right / (said + alarms) >= 0.9, "precision"


@pytest.mark.slow
def test_opposed_clients_are_found():
    hits = claimed = planted = 0
    for found, truth in told("opposed", 13_000):
        claimed += len(found.opposed)
        planted += int(truth.sum())
        hits += sum(int(truth[k]) for k in found.opposed)
    assert hits / planted >= 0.8
    assert hits / claimed >= 0.9


def test_advice_is_in_words_and_of_few_clients_there_is_none():
    cosines, truth = cohort(5, "groups")
    said = find_groups(cosines).give_advice(tuple(range(100, 100 + len(truth))))
    assert any("fall into" in line for line in said)
    assert find_groups(np.eye(4)).give_advice((1, 2, 3, 4)) == []
    cosines, truth = cohort(5, "opposed")
    names = [str(100 + k) for k in np.flatnonzero(truth)]
    assert all(name in find_groups(cosines).give_advice(tuple(range(100, 150)))[0] for name in names)


@pytest.mark.parametrize("kind", ["iid", "groups"])
def test_places_keep_inner_products(kind):
    cosines, truth = cohort(3, kind)
    places = place_in_plane(cosines)
    assert places.shape == (len(truth), 2)
    np.testing.assert_allclose(places.mean(0), 0, atol=1e-9)
    if kind == "groups" and len(np.unique(truth)) == 2:
        centres = [places[truth == t].mean(0) for t in (0, 1)]
        assert np.linalg.norm(centres[0] - centres[1]) > 2 * max(places[truth == t].std() for t in (0, 1))

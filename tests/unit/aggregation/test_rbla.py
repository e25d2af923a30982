"""RBLA against its equation, rank by rank."""

import torch

from tests.aggregation.one_round import EQUAL, FORM, MIXED, a_round, pair, shares


def test_each_rank_is_the_mean_of_its_owners():
    result, updates, _ = a_round("rbla", MIXED)
    for j in range(FORM.rank):
        owners = [(p, u) for p, u in zip(shares(updates), updates, strict=True) if u.form.rank > j]
        total = sum(p for p, _ in owners)
        a = sum(p * u.get_trained(pair.A)[j] for p, u in owners) / total
        b = sum(p * u.scale / FORM.scale * u.get_trained(pair.B)[:, j] for p, u in owners) / total
        assert torch.allclose(result.state[pair.A][j], a)
        assert torch.allclose(result.state[pair.B][:, j], b)


def test_a_rank_without_owners_stays():
    result, _, state = a_round("rbla", MIXED[:1])
    assert torch.equal(result.state[pair.A][2:], state[pair.A][2:])
    assert torch.equal(result.state[pair.B][:, 2:], state[pair.B][:, 2:])
    assert not torch.equal(result.state[pair.A][:2], state[pair.A][:2])


def test_with_equal_ranks_it_is_fedit():
    one, _, _ = a_round("rbla", EQUAL)
    other, _, _ = a_round("fedit", EQUAL)
    assert all(torch.allclose(one.state[name], other.state[name]) for name in one.state)

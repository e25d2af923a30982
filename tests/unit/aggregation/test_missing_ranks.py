"""Clients of lower rank, in rounds without training: which rules keep the weight, and which dilute it."""

from dataclasses import replace

import pytest
import torch

from fedpeft.aggregation.factors import compute_effective_weight
from fedpeft.aggregation.missing_ranks import complete_update
from tests.aggregation.one_round import EQUAL, FORM, MIXED, a_round, layout, pair, shares


def change_of_the_global_weight(spec, clients, dtype=torch.float64):
    """norm(after - before) / norm(before) of s B A and what went into the base, after a round without training."""
    result, _, state = a_round(spec, clients, size=0.0)
    before = compute_effective_weight(pair, state, FORM).to_dense()
    after = compute_effective_weight(pair, result.state, FORM).to_dense()
    if pair.module in result.residuals:
        after = after + result.residuals[pair.module].to_dense()
    return float((after - before).norm() / before.norm())


DILUTING = ["ffa_lora", "rolora", "fedsvd", "flexlora", "hetlora", "lora_fair", "fedex_lora", "flora_na"]


@pytest.mark.parametrize("rule", DILUTING)
def test_a_round_without_training_changes_the_weight_unless_missing_ranks_are_kept(rule):
    """Clients of low rank hand back what they were sent, cut off; what they were not sent is theirs to leave alone."""
    assert change_of_the_global_weight(rule, MIXED) > 0.1
    kept = f"{rule}(missing_ranks=keep)"
    assert change_of_the_global_weight(kept, MIXED) < 1e-10
    assert change_of_the_global_weight(rule, EQUAL) < 1e-10


@pytest.mark.parametrize(
    "rule", ["raflora", "rbla", "fedrpca", "fslora", "median", "trimmed_mean", "krum", "norm_bound"]
)
def test_rules_that_count_owners_or_changes_keep_the_weight_without_training(rule):
    assert change_of_the_global_weight(rule, MIXED) < 1e-10


@pytest.mark.parametrize("rule", ["flexlora(remainder=keep, missing_ranks=keep)", "fedex_lora(missing_ranks=keep)"])
def test_kept_ranks_are_each_clients_share_of_the_update(rule):
    """W = sum_k p_k (s_k B_k A_k + s B A - s_k B A of the ranks sent), written out."""
    result, updates, state = a_round(rule, MIXED)
    expected = sum(
        p * (u.scale * (u.get_trained(pair.B) @ u.get_trained(pair.A) - u.received[pair.B] @ u.received[pair.A]))
        for p, u in zip(shares(updates), updates, strict=True)
    )
    expected = expected + compute_effective_weight(pair, state, FORM).to_dense()
    after = compute_effective_weight(pair, result.state, FORM).to_dense() + result.residuals[pair.module].to_dense()
    assert torch.allclose(after, expected, atol=1e-10)


def test_an_update_in_the_global_form_is_complete():
    _, updates, state = a_round("fedit", EQUAL)
    for update in (updates[0], replace(updates[0], form=None)):
        assert complete_update(pair, update, state, layout) is update

"""Flower's own strategies by name: what they give is what their definitions say."""

import math

import pytest
import torch

from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape
from tests.refusals import refuses

FORM = AdapterShape(4, 8.0)
LAYOUT = create_lora_layout([(7, 11), (13, 5)], FORM, head=(3, 5))
STATE = create_random_state(LAYOUT, 1)
CLIENTS = [Client(FORM, w) for w in (3.0, 1.0, 2.5, 7.0, 1.5)]


def round_of(text, clients=CLIENTS, spoil=None):
    strategy = strategies.build(text)
    updates = create_random_updates(strategy, STATE, LAYOUT, clients, 3)
    if spoil is not None:
        for tensor in updates[spoil].delta.values():
            tensor.mul_(1e3)
    return updates, run_round(strategy, STATE, LAYOUT, updates).state


def test_fedavg_is_fedit():
    _, mine = round_of("fedit")
    _, theirs = round_of('flower(rule="FedAvg")')
    for name in STATE:
        torch.testing.assert_close(theirs[name], mine[name], rtol=1e-5, atol=1e-6)


def test_fedmedian_is_the_median_of_each_entry():
    updates, after = round_of('flower(rule="FedMedian")')
    for name in STATE:
        expected = torch.stack([u.get_trained(name) for u in updates]).sort(dim=0).values[2]
        torch.testing.assert_close(after[name], expected)


def test_fedtrimmedavg_leaves_out_the_extremes():
    updates, after = round_of('flower(rule="FedTrimmedAvg", beta=0.2)')
    for name in STATE:
        expected = torch.stack([u.get_trained(name) for u in updates]).sort(dim=0).values[1:4].mean(dim=0)
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["Krum", "MultiKrum", "Bulyan"])
def test_a_hostile_client_is_left_out(rule):
    clients = CLIENTS * 2
    updates, after = round_of(f'flower(rule="{rule}", num_malicious_nodes=1)', clients, spoil=2)
    spoiled = math.sqrt(sum(float(u.square().sum()) for u in updates[2].delta.values()))
    moved = math.sqrt(sum(float((after[n] - STATE[n]).square().sum()) for n in STATE))
    assert 0 < moved < spoiled / 100


def test_mixed_ranks_are_refused():
    with refuses("FP1024"):
        strategies.build("flower").check(LAYOUT, [FORM, AdapterShape(2, 8.0)])


def test_an_unknown_rule_names_the_legal_ones():
    with refuses("FP1227", "FedMedian"):
        strategies.build('flower(rule="FedAdam")')


def test_a_cohort_that_is_too_small_is_one_sentence():
    with refuses("FP5239", "Bulyan", "2", "5"):
        round_of('flower(rule="Bulyan", num_malicious_nodes=2)')

"""The aggregation error that a run records, against its definition."""

import dataclasses
import math

import pytest

from fedpeft.aggregation.aggregator import create_aggregator
from fedpeft.aggregation.exactness import LARGEST_TARGET, MeasuringAggregator, Products, is_measurable
from fedpeft.conformance.cohorts import Client, create_lora_layout, create_random_state, create_random_updates
from fedpeft.parts.families import SERVER_OPTIMIZERS, strategies
from fedpeft.peft.adapter import AdapterShape

FORM = AdapterShape(4, 8.0)
LAYOUT = create_lora_layout([(7, 11), (13, 5)], FORM, head=(3, 5))
CLIENTS = [Client(FORM, w) for w in (3.0, 1.0, 2.5)]


def measured(text, tmp_path, clients=CLIENTS):
    strategy = strategies.build(text)
    state = create_random_state(LAYOUT, 1)
    inner = create_aggregator(strategy, SERVER_OPTIMIZERS.build("sgd"), LAYOUT, state, 1, 0, tmp_path)
    total = MeasuringAggregator(inner, Products(LAYOUT))
    updates = create_random_updates(strategy, state, LAYOUT, clients, 3)
    for update in updates:
        total.add(update)
    outcome = total.finish({})
    return updates, outcome, outcome.error


@pytest.mark.medium
def test_it_is_the_relative_distance_to_the_exact_aggregate(tmp_path):
    updates, outcome, error = measured("fedit", tmp_path)
    distance = size = 0.0
    for pair in LAYOUT.pairs:
        exact = sum(
            u.weight / 6.5 * 2.0 * u.get_trained(pair.B).double() @ u.get_trained(pair.A).double() for u in updates
        )
        made = 2.0 * outcome.state[pair.B].double() @ outcome.state[pair.A].double()
        distance += float((exact - made).square().sum())
        size += float(exact.square().sum())
    assert error == pytest.approx(math.sqrt(distance / size), rel=1e-4)
    assert error > 0.1


@pytest.mark.parametrize("text", ["flora", "fedex_lora", "ffa_lora", "rolora", "fedsvd"])
def test_exact_rules_have_none(text, tmp_path):
    _, _, error = measured(text, tmp_path)
    assert error < 1e-5


def test_mixed_ranks_and_alphas(tmp_path):
    clients = [Client(AdapterShape(2, 8.0), 3.0), Client(AdapterShape(4, 8.0), 1.0), Client(AdapterShape(3, 6.0), 2.5)]
    assert measured("flora", tmp_path / "a", clients)[2] < 1e-5
    assert measured("hetlora", tmp_path / "b", clients)[2] > 0.1


def test_it_is_left_out_where_it_is_not_defined_or_too_large():
    side = int(math.sqrt(LARGEST_TARGET))
    assert is_measurable(strategies.build("fedit"), LAYOUT)
    assert is_measurable(strategies.build("fedit"), create_lora_layout([(side, side)], FORM))
    assert not is_measurable(strategies.build("fedit"), create_lora_layout([(side, side + 1)], FORM))
    assert not is_measurable(strategies.build("fedsa_lora"), LAYOUT)
    heads = dataclasses.replace(LAYOUT, tensors=tuple(t for t in LAYOUT.tensors if t.role == "head"))
    assert not is_measurable(strategies.build("fedit"), heads)

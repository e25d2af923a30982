"""Rules of somebody's own that make something else of updates than they should are refused, not stretched to fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from fedpeft.aggregation.aggregator import LinearAggregator, RoundAggregator
from fedpeft.aggregation.strategy import Aggregate, LinearStrategy, RoundStrategy
from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.parts.families import SERVER_OPTIMIZERS
from fedpeft.peft.adapter import AdapterShape
from fedpeft.privacy.abilities import ServerRound
from fedpeft.privacy.mechanisms.user_dp import NoisySum
from fedpeft.privacy.noise import RunKey
from tests.refusals import refuses

LAYOUT = create_lora_layout([(7, 11)], AdapterShape(4, 8.0), head=(3, 5))
STATE = create_random_state(LAYOUT, 1)


@dataclass(frozen=True)
class OneNumber(LinearStrategy):
    def contribution(self, update, state, layout):
        return {name: delta.reshape(-1)[:1] for name, delta in update.delta.items()}


@dataclass(frozen=True)
class OneTensor(LinearStrategy):
    def contribution(self, update, state, layout):
        return dict(list(update.delta.items())[:1])


@dataclass(frozen=True)
class Half(RoundStrategy):
    def aggregate(self, state, layout, read, round_number, seed):
        return Aggregate({name: tensor for name, tensor in state.items() if name.startswith("layer")}, {})


def updates(strategy):
    return create_random_updates(strategy, STATE, LAYOUT, [Client(LAYOUT.form), Client(LAYOUT.form, 2.0)], 3)


@pytest.mark.parametrize(("rule", "words"), [(OneNumber, ("FP1030", "(1,)")), (OneTensor, ("FP1031", "more"))])
def test_sums_have_to_fit_the_state(rule, words):
    strategy = rule()
    round_number = LinearAggregator(strategy, SERVER_OPTIMIZERS.build("sgd"), LAYOUT, STATE, 1)
    with refuses(*words):
        round_number.add(updates(strategy)[0])
    with refuses(*words):
        run_round(strategy, STATE, LAYOUT, updates(strategy))


@pytest.mark.parametrize(("rule", "words"), [(OneNumber, ("FP1030", "(1,)")), (OneTensor, ("FP1031", "more"))])
def test_so_do_those_that_get_noise(rule, words):
    strategy = rule()
    at = ServerRound(
        strategy, SERVER_OPTIMIZERS.build("sgd"), LAYOUT, STATE, round=1, attempt=0, key=RunKey(bytes(32)), noise=1.0,
        clip=1.0,
    )  # fmt: skip
    with refuses(*words):
        NoisySum(at, 2.0, 1.0).add(updates(strategy)[0])


def test_what_a_rule_of_rounds_makes_is_the_whole_state(tmp_path):
    round_number = RoundAggregator(Half(), LAYOUT, STATE, 1, 0, tmp_path)
    round_number.add(updates(Half())[0])
    with refuses("FP1031", "head.bias and 1 more"):
        round_number.finish({})


def test_clients_add_up_in_the_same_names_and_shapes():
    strategy = OneNumber()
    one, other = (replace(u, delta=dict(u.delta)) for u in updates(strategy))
    total = LinearAggregator(LinearStrategy(), SERVER_OPTIMIZERS.build("sgd"), LAYOUT, STATE, 1)
    total.add(one)
    other.delta["head.bias"] = torch.zeros(1)
    with refuses("FP1029", "head.bias", "(1,)", "(3,)"):
        total.add(other)
    del other.delta["head.bias"]
    with refuses("FP1028", "head.bias"):
        total.add(other)

"""Strategies of Flower's, and a user's own, through the hook: the rules themselves, what is kept, what is refused."""

from __future__ import annotations

import enum
import random

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import strategy as older
from flwr.serverapp import strategy as newer

import fedpeft
from fedpeft.aggregation.aggregator import RoundAggregator
from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.errors import ConfigError
from fedpeft.flower.strategy import wrap_strategy
from fedpeft.flower.strategy_checkpoint import FORM, pickle_unsaved, restore_values, save_values
from fedpeft.parts import plugins
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape
from tests.refusals import pattern_of, refuses

RANKS = AdapterShape(4, 8.0)
LAYOUT = create_lora_layout([(7, 11), (13, 5)], RANKS, head=(3, 5))
STATE = create_random_state(LAYOUT, 1)
CLIENTS = [Client(RANKS, w) for w in (3.0, 1.0, 2.5, 7.0, 1.5)]


def rounds_of(rule, folder, count=3, memory=None, first=1, state=STATE):
    """States after each round of a rule, and what it has kept."""
    found, memory = [], memory or {}
    for number in range(first, first + count):
        aggregator = RoundAggregator(rule, LAYOUT, state, number, 7, folder / "shelf")
        for update in create_random_updates(rule, state, LAYOUT, CLIENTS, 3 + number, size=0.1):
            aggregator.add(update)
        outcome = aggregator.finish(memory)
        state, memory = outcome.state, outcome.memory
        found.append(state)
    return found, memory


def close(one, other):
    for name in STATE:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("theirs", [newer.FedAvg, older.FedAvg])
def test_fedavg_of_either_kind_is_fedit(theirs):
    rule, ours = wrap_strategy(theirs)(), strategies.build("fedit")
    updates = create_random_updates(ours, STATE, LAYOUT, CLIENTS, 3)
    assert rule.start(STATE, LAYOUT, 7) is STATE
    close(run_round(rule, STATE, LAYOUT, updates).state, run_round(ours, STATE, LAYOUT, updates).state)


@pytest.mark.parametrize("theirs", [newer.FedMedian, older.FedMedian])
def test_fedmedian_of_either_kind_is_the_median_of_each_entry(theirs):
    updates = create_random_updates(strategies.build("fedit"), STATE, LAYOUT, CLIENTS, 3)
    after = run_round(wrap_strategy(theirs)(), STATE, LAYOUT, updates).state
    close(after, run_round(strategies.build("flower(rule=FedMedian)"), STATE, LAYOUT, updates).state)
    for name in STATE:
        close_to = torch.stack([u.get_trained(name) for u in updates]).sort(dim=0).values[2]
        torch.testing.assert_close(after[name], close_to, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("theirs", [newer.FedAdam, older.FedAdam])
def test_fedadam_of_either_kind_keeps_its_moments(theirs, tmp_path):
    """Algorithm 2 of Reddi et al. with Flower's start at 0 and its correction, computed from the same updates."""
    rule = wrap_strategy(theirs)(eta=0.05, beta_1=0.8, beta_2=0.9, tau=1e-2)
    found, _ = rounds_of(rule, tmp_path)
    state, ours = STATE, strategies.build("fedit")
    m, v = ({name: torch.zeros_like(t, dtype=torch.float64) for name, t in STATE.items()} for _ in range(2))
    for number, after in enumerate(found, start=1):
        updates = create_random_updates(ours, state, LAYOUT, CLIENTS, 3 + number, size=0.1)
        mean = run_round(ours, state, LAYOUT, updates).state
        eta = 0.05 * (1 - 0.9 ** (number + 1)) ** 0.5 / (1 - 0.8 ** (number + 1))
        for name in STATE:
            d = mean[name].double() - state[name].double()
            m[name] = 0.8 * m[name] + 0.2 * d
            v[name] = 0.9 * v[name] + 0.1 * d**2
            expected = state[name].double() + eta * m[name] / (v[name].sqrt() + 1e-2)
            torch.testing.assert_close(after[name].double(), expected, rtol=1e-5, atol=1e-6)
        state = after


class Own(older.FedAvg):
    """A mean that is damped, the more the later, by a number that is drawn."""

    def __init__(self, damping: float = 0.5, **given):
        super().__init__(**given)
        self.damping, self.seen, self.generator = damping, [], np.random.default_rng(3)

    def aggregate_fit(self, server_round, results, failures):
        self.seen.append((server_round, len(results)))
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        drawn = self.generator.random() * random.random() * float(np.random.rand())
        arrays = [np.float32(self.damping ** len(self.seen) * (1 + drawn)) * a for a in _arrays(parameters)]
        return ndarrays_to_parameters(arrays), metrics


def _arrays(parameters):
    from flwr.common import parameters_to_ndarrays

    return parameters_to_ndarrays(parameters)


def test_a_run_that_goes_on_from_its_checkpoint_is_the_run(tmp_path):
    rule = wrap_strategy(Own)(damping=0.9)
    whole, _ = rounds_of(rule, tmp_path, count=4)
    half, memory = rounds_of(rule, tmp_path, count=2)
    memory = {label: {name: tensor.clone() for name, tensor in state.items()} for label, state in memory.items()}
    rest, _ = rounds_of(rule, tmp_path, count=2, memory=memory, first=3, state=half[-1])
    for one, other in zip(whole, half + rest, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in STATE)
    assert any(not torch.equal(whole[2][name], whole[3][name]) for name in STATE)


def test_arguments_are_settings():
    class Rule(newer.FedAvg):
        """One line."""

        def __init__(self, eta: float, norm: str | None = None, fraction_train: float = 0.5, **given):
            super().__init__(fraction_train=fraction_train, **given)

    part = wrap_strategy(Rule)
    assert {"eta", "norm", "weighted_by_key"} <= set(part.names)
    assert "fraction_train" not in part.names
    # a plugin's module has no name to tell
    assert part.__doc__.startswith("One line.\n\nA strategy of Flower's, Rule. ")
    assert part(eta=0.1).start(STATE, LAYOUT, 0) is STATE  # fraction_train has been set to 1


class Sampling(newer.FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        return list(super().configure_train(server_round, arrays, config, grid))[:3]


class Asking(newer.FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        grid.send_and_receive([])
        return super().configure_train(server_round, arrays, config, grid)


class Waiting(newer.FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        while len(list(grid.get_node_ids())) < 1000:
            pass
        return []


class Sending(newer.FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        halved = ArrayRecord({name: Array(array.numpy() / 2) for name, array in arrays.items()})
        return super().configure_train(server_round, halved, config, grid)


class Calling(older.FedAvg):
    def configure_fit(self, server_round, parameters, client_manager):
        for proxy in client_manager.all().values():
            proxy.get_properties(None, None, None)
        return super().configure_fit(server_round, parameters, client_manager)


class Beginning(older.FedAvg):
    def initialize_parameters(self, client_manager):
        return ndarrays_to_parameters([np.zeros(3)])


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (newer.FedProx, ("FP5141", "FedProx.configure_train", "proximal-mu")),
        (Sampling, ("FP5140", "Sampling.configure_train", "3", "100")),
        (Asking, ("FP5148", "Asking", "send_and_receive")),
        (Waiting, ("FP5147", "Waiting", "100")),
        (Sending, ("FP5143", "Sending.configure_train")),
        (Calling, ("FP5149", "Calling")),
        (Beginning, ("FP1182", "Beginning")),
    ],
)
def test_what_can_not_work_is_refused_before_the_first_round(theirs, said):
    given = {"proximal_mu": 0.1} if theirs is newer.FedProx else {}
    with pytest.raises(ConfigError, match=pattern_of(*said)):
        wrap_strategy(theirs)(**given).start(STATE, LAYOUT, 0)


class Looping(newer.FedAvg):
    def start(self, *given, **named):
        return None


class Needing(newer.FedAvg):
    def __init__(self, model: torch.nn.Module):
        super().__init__()


class Clashing(newer.FedAvg):
    def __init__(self, weighting: str = "mine"):
        super().__init__()


class Neighbour(NumPyClient):
    pass


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (Looping, ("FP1192", "Looping")),
        (Needing, ("FP1184", "Needing", "model")),
        (Clashing, ("FP1185", "Clashing", "weighting")),
        (newer.DifferentialPrivacyServerSideFixedClipping, ("FP1190", "--privacy")),
        (older.DifferentialPrivacyClientSideAdaptiveClipping, ("FP1190", "--privacy")),
        (newer.Strategy, ("FP1191", "Strategy", "aggregate_evaluate")),
        (Neighbour, ("FP1187", "Neighbour")),
        (ClientApp(), ("FP1187", "ClientApp")),
        (int, ("FP1189",)),
    ],
)
def test_classes_that_are_no_rules_are_refused_by_name(theirs, said):
    with refuses(*said):
        wrap_strategy(theirs)


class Failing(newer.FedAvg):
    def aggregate_train(self, server_round, replies):
        return {1: 2}[server_round + 5], None


class Refusing(newer.FedAvg):
    def aggregate_train(self, server_round, replies):
        return None, None


class Diverging(newer.FedAvg):
    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord({name: Array(array.numpy() * np.nan) for name, array in arrays.items()}), metrics


class Short(older.FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        return ndarrays_to_parameters(_arrays(parameters)[1:]), metrics


class Thing:
    def __init__(self):
        self.number = 0


class Keeping(newer.FedAvg):
    def __init__(self):
        super().__init__()
        self.thing = Thing()

    def aggregate_train(self, server_round, replies):
        self.thing.number += 1
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (Failing, ("FP5137", "Failing.aggregate_train", "1", "KeyError: 6", "test_own_strategy.py")),
        (Refusing, ("FP5139", "Refusing.aggregate_train", "1", "5")),
        (Diverging, ("FP5146",)),
        (Short, ("FP5138", "Short.aggregate_fit", "5", "1", "6")),
        (Keeping, ("FP5136", "Keeping", "thing", "a Thing")),
    ],
)
def test_what_goes_wrong_in_a_round_is_one_sentence(theirs, said):
    updates = create_random_updates(strategies.build("fedit"), STATE, LAYOUT, CLIENTS, 3)
    with refuses(*said):
        run_round(wrap_strategy(theirs)(), STATE, LAYOUT, updates)


TINY = {"dataset": "tiny", "clients": 4, "cohort": "all", "dtype": "fp32", "workers": 1, "tokens": 32,
        "local_work": "steps(1)", "measure": "validation(keep=last)", "optimizer": "sgd",
        "progress": False}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"privacy": "secure_sum"}, "FP7100"),
        ({"privacy": "user_dp(epsilon=8)"}, "FP7067"),
        ({"server_optimizer": "adam"}, "FP1335"),
        ({"ranks": "4*2,8*2"}, "FP1024"),
    ],
)
def test_what_needs_a_plain_sum_is_refused_by_name(settings, code, tmp_path):
    with refuses(code, "FedAvg"):
        fedpeft.run_simulation(strategy=wrap_strategy(newer.FedAvg)(), output=tmp_path / "run", **TINY, **settings)


def test_a_class_of_flowers_in_a_plugin_is_told_to_be_wrapped(tmp_path):
    file = tmp_path / "parts.py"
    file.write_text('from flwr.server.strategy import FedAvg\nparts = {"strategies": {"theirs": FedAvg}}\n')
    with refuses("FP1251", "FedAvg"):
        plugins.find_plugin(str(file))


def test_a_class_named_where_a_part_belongs_leads_to_the_plugin():
    with refuses("FP1234", "strategy", "my_package", "--plugin"):
        strategies.build("my_package:MyStrategy")


def test_what_is_kept_comes_back():
    values = {
        "number": 0.1, "whole": 2**70, "text": "å", "none": None, "yes": True, "array": np.arange(6.0).reshape(2, 3),
        "scalar": np.float32(0.3), "tensor": torch.ones(2, dtype=torch.int32), "bytes": b"\0a", "code": print,
        "nested": {"a": [1, (2.5, {3}), {4: np.zeros(0)}]}, "record": ArrayRecord({"x": Array(np.eye(2))}),
        "parameters": ndarrays_to_parameters([np.eye(3)]), "infinite": float("inf"),
    }  # fmt: skip
    generator, drawn = np.random.default_rng(5), random.Random(5)
    state = save_values({**values, "generator": generator, "drawn": drawn}, {}, "Rule")
    back = restore_values(state)
    assert FORM in state
    assert "code" not in back
    assert back["generator"].random() == generator.random()
    assert back["drawn"].random() == drawn.random()
    np.testing.assert_equal(back["nested"], values["nested"])
    np.testing.assert_array_equal(back["record"]["x"].numpy(), np.eye(2))
    assert back["parameters"] == values["parameters"]
    assert back["scalar"].dtype == np.float32
    assert torch.equal(back["tensor"], values["tensor"])
    for name in ("number", "whole", "text", "none", "yes", "bytes", "infinite"):
        assert back[name] == values[name]
        assert type(back[name]) is type(values[name])


class Way(enum.StrEnum):
    MEAN = "mean"


class DrawsAtTheStart(older.FedAvg):
    def initialize_parameters(self, client_manager):
        self.first = float(np.random.random())


def test_what_is_drawn_before_the_first_round_is_the_seeds(tmp_path):
    found = []
    for elsewhere in (1, 2):
        np.random.seed(elsewhere)
        _, memory = rounds_of(wrap_strategy(DrawsAtTheStart)(), tmp_path, 1)
        found.append(restore_values(memory["flower"])["first"])
        after = np.random.random()
        np.random.seed(elsewhere)
        assert np.random.random() == after  # and takes nothing from others
    assert found[0] == found[1]


@pytest.mark.parametrize("value", [Thing(), Way.MEAN])
def test_what_stays_as_it_was_needs_no_keeping(value):
    values = {"thing": value}
    assert restore_values(save_values(values, pickle_unsaved(values), "Rule")) == {}

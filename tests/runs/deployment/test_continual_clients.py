"""Tasks one after the other with real clients: the same run as a simulation's, and what a client checks."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedpeft.aggregation.task_rules import get_client_form
from fedpeft.communication.messages import Instruction
from fedpeft.deployment.description import check_description, parse_tasks
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.reporting.records import Records
from tests.conftest import SilentObserver
from tests.here import OfSimulation, make_simulation, run_simulation
from tests.refusals import refuses

DATA = "tasks('tiny(classes=4)', classes=2, late=1)"
TASKS = {"dataset": DATA, "clients": 3, "rounds": 4, "dtype": "fp64", "measure": "validation(every=1)"}


@pytest.mark.parametrize("strategy", ["fedit", "o_lora"])
def test_real_clients_learn_tasks_as_simulated_ones_do(strategy, tmp_path, observer):
    made = make_simulation(tmp_path / "simulated", strategy=strategy, **TASKS)
    real = OfSimulation(tmp_path, observer, made, strategy=strategy, **TASKS)
    state, records = run_simulation(made)
    found = real.run()
    assert [report.error for report in real.server.direct.reports] == [""] * 12
    asked = {(i.round, i.client): i.task for i in real.server.direct.asked if i.kind == "train"}
    assert {task for (round_number, _), task in asked.items() if round_number == 3} == {1, 2}, "one is late"
    for name, tensor in state.adapter.items():
        assert float((found.adapter[name] - tensor).abs().max()) <= 1e-12, name
    for one, other in zip(records.read("tasks.jsonl"), Records(tmp_path / "server").read("tasks.jsonl"), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value == pytest.approx(other[key], abs=1e-12), key


def test_a_server_that_stops_between_two_tasks_goes_on_as_if_it_had_not(tmp_path, observer):
    made = make_simulation(tmp_path / "simulated", strategy="o_lora", **TASKS)
    real = OfSimulation(tmp_path, observer, made, strategy="o_lora", **TASKS)
    edge = real.server.edges[-1]
    handle = edge.handle

    def stopping(asked):
        if asked.round == 2:  # the last round of the first task
            real.server.stopping.set()
        return handle(asked)

    edge.handle = stopping
    assert real.run().round == 2
    real.start()
    real.server.edges = [real.edge(k) for k in range(3)]
    state, _ = run_simulation(made)
    found = real.run()
    assert found.round == 4
    for name, tensor in state.adapter.items():
        assert float((found.adapter[name] - tensor).abs().max()) <= 1e-12, name
    assert len(Records(tmp_path / "server").read("tasks.jsonl")) == 3


class LackingTask(OfSimulation):
    """Clients of which the second has no example of the second task."""

    def rows(self, k):
        first = self.simulation.rows.dataset.label_names[:2]
        return [row for row in super().rows(k) if k != 1 or row["label"] in first]


@pytest.mark.parametrize("privacy", ["local_dp(noise_multiplier=2, clip=1, raw_metrics=True)", "secure_sum", ""])
def test_a_protected_client_without_a_task_does_not_join(privacy, tmp_path, observer):
    """Its ledger does not cover what the server would learn from its failure: that it lacks these classes."""
    given = {**TASKS, "strategy": "fedit", "privacy": privacy}
    made = make_simulation(tmp_path / "simulated", **given)
    made.close()
    if privacy:
        with refuses("FP7276", "class 2, class 3"):
            LackingTask(tmp_path, observer, made, **given)
    else:
        assert len(LackingTask(tmp_path, observer, made, **given).server.edges) == 3


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Return a server of two tasks and its clients, which have not begun."""
    folder = tmp_path_factory.mktemp("told")
    made = make_simulation(folder / "simulated", strategy="o_lora", **TASKS)
    made.close()
    return OfSimulation(folder, SilentObserver(), made, strategy="o_lora", **TASKS)


def test_a_client_refuses_another_task_than_the_settings_lead_to(told):
    edge = told.server.edges[0]
    policy, form = edge.policy, get_client_form(edge.setup.strategy, edge.setup.layout)
    legal = 1 + policy.tasks.get_client_task(0, 1, edge.config.seed)
    honest = Instruction("train", 1, 0, b"", rank=form.rank, alpha=form.alpha, task=legal)
    policy.check(honest)
    for task in (0, legal + 1, 3):
        with refuses("FP6495", task, legal):
            policy.check(replace(honest, task=task))
    with refuses("FP6495", 1):
        replace(policy, tasks=None).check(honest)
    with refuses("FP6176", 4):
        policy.check(replace(honest, rank=4))  # the ranks of both tasks


LEGAL = {"classes": [[0, 1], [2, 3]], "every": 2, "late": 1, "compete": "task"}


@pytest.mark.parametrize(
    "tasks",
    [
        "[]",
        "{",
        "1" * 5000,
        "[" * 100_000,
        json.dumps(LEGAL | {"classes": [[0, 1, 2, 3]]}),
        json.dumps(LEGAL | {"classes": [[0, 1], [1, 2, 3]]}),
        json.dumps(LEGAL | {"classes": [[0, 1], [2]]}),
        json.dumps(LEGAL | {"classes": [[0, 1, 2, 3], []]}),
        json.dumps(LEGAL | {"classes": [[0, 1], [2, 3.0]]}),
        json.dumps(LEGAL | {"classes": [["0", 1], [2, 3]]}),
        json.dumps(LEGAL | {"every": 1}),
        json.dumps(LEGAL | {"every": True}),
        json.dumps(LEGAL | {"every": 10**9}),
        json.dumps(LEGAL | {"late": -1}),
        json.dumps(LEGAL | {"compete": "none"}),
        json.dumps(LEGAL | {"more": 1}),
        json.dumps({name: value for name, value in LEGAL.items() if name != "late"}),
    ],
)
def test_a_client_refuses_tasks_that_no_server_describes(told, tasks):
    description = type(told.server.gateway.description)()
    description.CopyFrom(told.server.gateway.description)
    check_description(description)
    description.tasks = json.dumps(LEGAL)
    assert parse_tasks(description).classes == ((0, 1), (2, 3))
    description.tasks = tasks
    with refuses("FP5556"):
        check_description(description)


@pytest.mark.parametrize(("task", "side"), [("multi_label", 0), ("token_labels", 0), ("patch_labels", 64)])
def test_a_client_refuses_tasks_of_examples_without_one_class(task, side):
    """Such an example names no task, so a client would stop with a traceback, or train on all of its examples."""
    tasks = json.dumps(LEGAL | {"classes": [[0], [1]]})
    with refuses("FP5655", task):
        check_description(v2.Description(task=task, labels=["a", "b"], side=side, tasks=tasks))

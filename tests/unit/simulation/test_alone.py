"""Clients alone: who they are, what they start from, and that nothing of the others reaches them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedpeft.clients.executor import Job
from fedpeft.clients.pool import Worker

from fedpeft.peft.adapter import AdapterShape, Layout, TensorSpec
from fedpeft.simulation.alone import choose_clients, expand_to_global, start_alone, train_one_alone
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses
from tests.runs.simulation.test_run_strategies import settings


def test_clients_lie_evenly_between_few_rows_and_many():
    sizes = np.array([50, 10, 40, 20, 30])
    assert choose_clients(sizes, 3) == [1, 4, 0]
    assert choose_clients(sizes, 1) == [1]
    assert sorted(choose_clients(sizes, 9)) == [0, 1, 2, 3, 4]


def test_a_client_alone_trains_on_its_rows_in_every_round(tmp_path, observer):
    """Against jobs written out: the head of its own rows, then each round from where the last one ended."""
    config = RunConfig(**settings("fedit", dtype="fp64", head="centroids", measure="validation(every=1, keep=last)"))
    simulation = Simulation(config, tmp_path, observer)
    try:
        state = train_one_alone(simulation, 2)
        setup, worker = simulation.setup, simulation.workers.pool.submit(lambda worker: worker).result()
        rows = simulation.rows.partition.shard(2)
        features, labels = worker.bench.load_regression_data(rows)
        weight = setup.start["head.weight"]
        means = {int(y): features[labels == y].double().mean(0) for y in labels.unique()}
        started = worker.clients.head.solve(
            {k: v.double() for k, v in worker.clients.head.statistics(features, labels, len(weight)).items()},
            *reversed(weight.shape),
        )
        absent = [y for y in range(len(weight)) if y not in means]
        assert len(means) > 1
        assert not started["head.weight"][absent].any()
        expected = setup.start | {n: t.to(weight.dtype) for n, t in started.items()}
        for round_number in (1, 2):
            job = replace(
                _job(simulation, rows, expected),
                round=round_number,
                learning_rate=setup.schedule.get_rate(round_number),
            )
            job = replace(job, walked=2 * (round_number - 1))  # each round goes on with the rows that come next
            expected = expected | Worker.train(worker, job).state
        assert all(torch.allclose(state[n], expected[n], rtol=1e-9, atol=1e-12) for n in expected)
        assert not torch.equal(state["head.weight"], train_one_alone(simulation, 3)["head.weight"])
    finally:
        simulation.close()


def _job(simulation, rows, state):
    setup = simulation.setup
    return Job(2, 1, 3, rows, state, frozenset(setup.layout.names), setup.training, 0.0, form=setup.layout.form)


@pytest.mark.parametrize("given", [{"strategy": "fedper"}, {"measure": "calibration(rows=clients)"}], ids=str)
def test_a_client_alone_does_not_train_on_what_it_holds_out_in_the_run(given, tmp_path, observer, monkeypatch):
    seen, train = [], Worker.train

    def noted(worker, job):
        seen.append(job.rows)
        return train(worker, job)

    monkeypatch.setattr(Worker, "train", noted)
    simulation = Simulation(RunConfig(**settings("fedit") | given), tmp_path, observer)
    train_one_alone(simulation, 2)
    simulation.close()
    rows, apart = simulation.divide_rows(2)
    assert len(apart) == round(0.2 * len(simulation.rows.partition.shard(2)))
    assert all(set(own) <= set(rows) for own in seen)


def test_a_client_alone_trains_what_the_rule_has_it_train_at_its_own_rank(tmp_path, observer):
    given = settings("ffa_lora", dtype="fp64", ranks="2*3,4*3", measure="validation(every=1, keep=last)")
    config = RunConfig(**given)
    simulation = Simulation(config, tmp_path, observer)
    try:
        setup = simulation.setup
        small = next(k for k in range(6) if setup.profiles[k].form.rank == 2)
        large = next(k for k in range(6) if setup.profiles[k].form.rank == 4)
        one, other = train_one_alone(simulation, small), train_one_alone(simulation, large)
        for pair in setup.layout.pairs:
            assert torch.equal(other[pair.A], setup.start[pair.A])
            assert torch.equal(one[pair.A][:2], setup.start[pair.A][:2])
            assert one[pair.B].shape == other[pair.B].shape
            assert one[pair.B][:, :2].any()
            assert not one[pair.A][2:].any()
            assert not one[pair.B][:, 2:].any()
            assert other[pair.B][:, 2:].any()
    finally:
        simulation.close()


def test_a_client_alone_keeps_its_best_state_where_the_run_does(tmp_path, observer):
    """At a rate that ruins any start, which is then its best state: a weak reference would flatter the federation."""
    reached = {}
    for keep in ("best", "last"):
        given = settings("fedit", dtype="fp32", learning_rate=1.0, optimizer="adamw", head="centroids")
        config = RunConfig(**given | {"measure": f"validation(every=1, keep={keep})"})
        simulation = Simulation(config, tmp_path / keep, observer)
        try:
            state = train_one_alone(simulation, 2)
            reached[keep] = simulation.workers.evaluate(state, 0)
            start = simulation.workers.evaluate(start_alone(simulation, 2), 0)
        finally:
            simulation.close()
    assert reached["best"].accuracy >= start.accuracy
    assert reached["best"].accuracy > reached["last"].accuracy


def test_an_adapter_of_lower_rank_has_the_same_effective_weights_in_the_global_form():
    layout = Layout(
        (TensorSpec("m.A", (4, 5), "lora_A", "m"), TensorSpec("m.B", (3, 4), "lora_B", "m")), AdapterShape(4, 8.0)
    )
    form, lora_a, lora_b = AdapterShape(2, 6.0), torch.randn(2, 5).double(), torch.randn(3, 2).double()
    whole = expand_to_global({"m.A": lora_a, "m.B": lora_b}, layout, form)
    assert whole["m.A"].shape == (4, 5)
    assert torch.allclose(layout.form.scale * whole["m.B"] @ whole["m.A"], form.scale * lora_b @ lora_a)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"privacy": "dp_sgd(epsilon=8)", "measure": "alone"}, ("FP7092",)),
        ({"dataset": "tasks(tiny, classes=2)", "measure": "alone"}, ("FP1312",)),
    ],
)
def test_whom_training_alone_is_refused(given, words, tmp_path, observer):
    with refuses(*words):
        Simulation(RunConfig(**{**settings("fedit"), **given}), tmp_path, observer)

"""Noise shared by clients in whole runs: what is released, what is charged, dropouts, kills, and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from fedpeft.communication.messages import Report
from fedpeft.parts.families import MECHANISMS
from fedpeft.privacy.accountant import epsilon, rdp_epsilon
from fedpeft.privacy.skellam import Grid
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.rounds import Server
from tests.unit.privacy.test_distributed_runs import charges, simulated

MASKS = "threshold=0.5, test_noise=True"


def trained(folder: Path, **given):
    simulation = simulated(folder, **given)
    return simulation, simulation.train(simulation.server(Records(folder)))


def moved(progress) -> dict[str, torch.Tensor]:
    return {name: tensor - progress.started[name] for name, tensor in progress.adapter.items()}


# ---------------------------------------------------------------------------------------------------- what is released


@pytest.mark.parametrize(("unit", "strategy"), [("rows", "fedit"), ("rows", "ffa_lora"), ("clients", "fedit")])
def test_a_round_is_the_noisy_sum_and_nothing_else(tmp_path, unit, strategy):
    """With hardly any noise the model moves by the sum of what clients add, divided by what is expected."""
    given = {"rounds": 1, "strategy": strategy, "batch_size": 200, "learning_rate": 0.5}
    quiet = f"distributed_dp(noise_multiplier=1e-3, unit={unit}, clip=0.5, bits=32, {MASKS})"
    simulation, progress = trained(tmp_path / "quiet", privacy=quiet, **given)
    loud = quiet.replace("1e-3", "0.3")
    _, noised = trained(tmp_path / "loud", privacy=loud, **given)
    federation, names = simulation.protection.exposure, sorted(moved(progress))
    sums = simulation.setup.secure_sum
    expected = federation.rows.sum() if unit == "rows" else federation.clients
    assert sums.expected == expected
    names = [n for n in names if moved(noised)[n].any()]
    assert set(names) == simulation.setup.strategy.list_trained(simulation.setup.layout, 1)
    noise = torch.cat([(moved(noised)[n] - moved(progress)[n]).flatten() for n in names])
    rate = 0.5 if unit == "rows" else 1.0
    assert float(noise.std()) == pytest.approx(rate * 0.3 * 0.5 / expected, rel=0.1)
    step = math.sqrt(sum(float(moved(progress)[n].square().sum()) for n in names)) / rate
    assert 0.01 * 0.5 < step <= 0.5 * (1 + 0.01)  # a mean of vectors of norm C at most


def test_a_start_is_one_noisy_sum_of_all_clients(tmp_path):
    given = {"head": "private_centroids", "rounds": 1}
    simulation, progress = trained(tmp_path, privacy=f"distributed_dp(epsilon=8, start=1, {MASKS})", **given)
    engine = simulation.protection
    assert progress.round == 0
    assert [line["round"] for line in charges(tmp_path)] == [0]
    assert 7.9 < engine.epsilons()[0] <= 8
    assert progress.started["head.weight"].any()
    own = MECHANISMS.build("dp_sgd(epsilon=8, start=1)").start_release.compute_deviation(engine.start, 6)
    assert engine.mechanism.start_release.compute_deviation(engine.start, 6) == pytest.approx(own / math.sqrt(6))


# ------------------------------------------------------------------------------------------------------ what it costs


def test_the_budget_is_the_server_s_and_both_epsilons_are_told(tmp_path):
    text = f"distributed_dp(epsilon=4, collude=0.2, {MASKS.replace('0.5', '0.67')})"
    simulation, _ = trained(tmp_path, privacy=text, cohort=3, rounds=3)
    engine, told = simulation.protection, simulation.protection.summary()
    worst, models = told["epsilon"], told["privacy"]["epsilon_models"]
    assert 0 < models < worst <= 4
    assert told["privacy"]["epsilon_gaussian_prv"] < told["privacy"]["epsilon_gaussian_rdp"] <= worst * 1.001
    # by hand: each client's sums, with the noise that colluding clients do not know
    assert simulation.setup.secure_sum.rate == 16 * 6 / engine.exposure.rows.sum()
    grid, known = simulation.setup.secure_sum.later, 0.2 / 0.9
    for client, events in engine.ledger.spent.items():
        rate = 16 * 6 / engine.exposure.rows.sum()
        taken = sum(client in [c[0] for c in line["charges"]] for line in charges(tmp_path))
        variance = grid.variance * (1 - known)
        assert events == {Grid(grid.size, grid.step, grid.radius, variance).event(rate): taken}
    assert worst == max(rdp_epsilon(events, engine.delta) for events in engine.ledger.spent.values())
    assert engine.delta == pytest.approx(0.1 / engine.exposure.rows.sum())


def test_a_run_whose_clients_are_drawn_too_often_ends_and_is_within_its_budget(tmp_path):
    """The budget of one round: none of two is begun twice by the same client."""
    plan = simulated(tmp_path / "plan", privacy=f"distributed_dp(epsilon=4, {MASKS})", rounds=1).protection
    text = f"distributed_dp(epsilon=4, noise_multiplier={plan.noise_multiplier!r}, {MASKS})"
    simulation, progress = trained(tmp_path / "run", privacy=text, rounds=5)
    assert progress.round == 1
    assert simulation.protection.epsilons()[0] <= 4


# --------------------------------------------------------------------------------------------------- dropouts and kills


def dropping(monkeypatch, clients: tuple[int, ...], round_number: int) -> None:
    real = Transport.send_in_order

    def in_order(exchange, instructions, total, phase, *early):
        asked = {i.client: i for i in instructions}
        for report in real(exchange, list(asked.values()), total, phase, *early):
            i = asked[report.client]
            gone = (i.round, i.step) == (round_number, 3) and report.client in clients
            yield Report(report.client, report.round, b"", error="gone") if gone else report

    monkeypatch.setattr(Transport, "send_in_order", in_order)


def test_a_sum_with_too_little_noise_is_void_and_charged(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(ConsoleObserver, "say", lambda self, text: said.append(text))
    text = f"distributed_dp(noise_multiplier=1, dropouts=0.2, {MASKS})"
    dropping(monkeypatch, (1, 2), round_number=2)
    _, progress = trained(tmp_path, privacy=text, rounds=2)
    assert any("4 vectors have arrived of 6; with fewer than 5" in line for line in said)
    assert [line["round"] for line in charges(tmp_path)] == [1, 2]
    assert progress.round == 2
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert (lines[-2]["update_norm"] > 0, lines[-1]["update_norm"]) == (True, 0.0)


def test_a_round_that_is_tried_again_has_new_noise_and_a_new_charge(tmp_path, monkeypatch):
    """Stopped before its checkpoint: two sums with the same noise could differ by a client that has dropped out."""
    real, kept = Server.commit, {}

    def stop(self, progress):
        if progress.round == 2 and not kept:
            kept.update(progress.adapter)
            raise KeyboardInterrupt
        real(self, progress)

    monkeypatch.setattr(Server, "commit", stop)
    text = f"distributed_dp(noise_multiplier=1, {MASKS})"
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, privacy=text)
    simulation, progress = trained(tmp_path, privacy=text)
    assert [(line["round"], line["attempt"]) for line in charges(tmp_path)] == [(1, 0), (2, 0), (2, 1)]
    assert not torch.equal(progress.adapter["head.weight"], kept["head.weight"])
    engine = simulation.protection
    events = engine.mechanism.to_all(engine.exposure, 1.0, None, 0, 3)
    assert engine.noise_source.epsilon_of_models(engine) == epsilon(events, engine.delta) > 0


def test_sums_of_gradients_step_at_the_rate_that_an_undone_round_has_left(tmp_path, monkeypatch):
    norms = []
    monkeypatch.setattr(ConsoleObserver, "round_done", lambda _self, result: norms.append(result.update_norm))
    public = {"measure": "validation(every=100, public=True)", "safeguard": "undo(rise=0, rate=0.001)", "rounds": 3}
    _, progress = trained(tmp_path / "run", privacy=f"distributed_dp(unit=rows, noise_multiplier=1, {MASKS})", **public)
    assert progress.standing.rate <= 0.001, "noise alone raises the loss of one round"
    assert min(norms) < 0.01 * max(norms)

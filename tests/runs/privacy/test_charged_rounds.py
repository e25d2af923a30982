"""What is charged, over kills, resumes and spent budgets: never less than was released, and nothing twice."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from fedpeft.privacy.accountant import epsilon
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.ledger import POPULATION, Ledger
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.records import Records
from fedpeft.rounds.acceptance import ReportReceiver
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.rounds import Server
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.privacy.small_runs import QUIET, TINY, StopError, trained
from tests.refusals import refuses


def charges(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()[1:]]


def test_the_noise_of_a_budget_spends_it_and_no_more(tmp_path):
    simulation, _ = trained(tmp_path / "run", privacy="dp_sgd(epsilon=3, clip=0.5)")
    worst, median = simulation.protection.epsilons()
    assert 2.9 < worst <= 3
    assert median <= worst
    spent = simulation.protection.ledger.spent
    assert worst == max(epsilon(events, simulation.protection.delta) for events in spent.values())
    federation = simulation.protection.exposure
    for client, events in spent.items():
        [(event, steps)] = events.items()
        assert event.rate == min(1.0, 4 / federation.rows[client])
        assert steps == 2 * federation.participations[client]


def test_the_charge_is_on_disk_before_anyone_is_asked(tmp_path, monkeypatch):
    seen = []
    ask = Transport.send_in_order

    def exchange(self, instructions, total, phase, *early):
        seen.append((phase, len(charges(tmp_path / "run"))))
        return ask(self, instructions, total, phase, *early)

    monkeypatch.setattr(Transport, "send_in_order", exchange)
    trained(tmp_path / "run", privacy="user_dp(epsilon=3)")
    assert seen == [("train", 1), ("train", 2)]


@pytest.mark.parametrize("privacy", ["dp_sgd(epsilon=3)", "user_dp(epsilon=3)", "local_dp(epsilon=30)"])
def test_a_round_repeated_after_a_kill_is_the_same_and_charged_once(tmp_path, monkeypatch, privacy):
    """Stopped after the charge and before the checkpoint: the worst moment."""
    folder = tmp_path / "run"
    commit = Server.commit

    def stop(self, progress):
        if progress.round == 2:
            kept.update(progress.adapter)
            raise StopError
        commit(self, progress)

    kept: dict[str, torch.Tensor] = {}
    with monkeypatch.context() as patch:
        patch.setattr(Server, "commit", stop)
        with pytest.raises(StopError):
            trained(folder, privacy=privacy)
    assert [c["round"] for c in charges(folder)] == [1, 2]
    simulation, progress = trained(folder, privacy=privacy)
    assert [(c["round"], c["attempt"]) for c in charges(folder)] == [(1, 0), (2, 0)]
    assert all(torch.equal(progress.adapter[n], kept[n]) for n in kept)
    assert simulation.protection.epsilons()[0] <= simulation.setup.mechanism.epsilon


@pytest.mark.parametrize("step", ["charge", "send_in_order", "add", "append", "commit"])
def test_a_run_stopped_after_any_step_is_charged_for_all_that_it_released(tmp_path, monkeypatch, step):
    """In round 2: after the charge, the cohort's training, the first update's arrival, the records, the checkpoint."""
    owner = {"charge": Ledger, "send_in_order": Transport, "append": Records, "add": ReportReceiver}.get(step, Server)
    whole, folder, given = getattr(owner, step), tmp_path / "run", {"privacy": "dp_sgd(epsilon=3, test_noise=True)"}

    def stop(self, *arguments):
        done = whole(self, *arguments)
        if step == "send_in_order":
            done = list(done)  # all have trained
        if len(charges(folder)) == 2:
            raise StopError
        return done

    _, undisturbed = trained(tmp_path / "whole", **given)
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, stop)
        with pytest.raises(StopError):
            trained(folder, **given)
    assert [c["round"] for c in charges(folder)] == [1, 2]
    _, progress = trained(folder, **given)
    assert [(c["round"], c["attempt"]) for c in charges(folder)] == [(1, 0), (2, 0)]
    assert all(torch.equal(progress.adapter[n], t) for n, t in undisturbed.adapter.items()), "released again, otherwise"


def test_a_round_repeated_with_another_key_is_a_new_attempt_and_costs_again(tmp_path, monkeypatch):
    """Other noise on the same data is a second release.

    The ledger then contains three rounds, and the budget of two is spent: without at_budget=sit_out the run refuses to
    continue.
    """
    folder = tmp_path / "run"
    commit = Server.commit

    def stop(self, progress):
        if progress.round == 2:
            raise StopError
        commit(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Server, "commit", stop)
        with pytest.raises(StopError):
            trained(folder, privacy="user_dp(noise_multiplier=1)")
    (folder / "privacy.key").unlink()
    simulation, _ = trained(folder, privacy="user_dp(noise_multiplier=1)")
    assert [(c["round"], c["attempt"]) for c in charges(folder)] == [(1, 0), (2, 0), (2, 1)]
    [(_, releases)] = simulation.protection.ledger.spent[POPULATION].items()
    assert releases == 3


def test_a_run_whose_ledger_is_gone_is_not_resumed(tmp_path):
    trained(tmp_path / "run", privacy="user_dp(epsilon=3)")
    (tmp_path / "run" / LEDGER).unlink()
    with refuses("FP7039"):
        trained(tmp_path / "run", privacy="user_dp(epsilon=3)")


def test_a_spent_budget_ends_the_run_or_lets_clients_sit_out(tmp_path):
    given = {"rounds": 5, "cohort": 4, "privacy": "dp_sgd(epsilon=1.5, noise_multiplier=0.8)"}
    with refuses("FP7040"):
        trained(tmp_path / "refused", **given)
    given["privacy"] = "dp_sgd(epsilon=1.5, noise_multiplier=0.8, at_budget=sit_out)"
    simulation, progress = trained(tmp_path / "run", **given)
    protection = simulation.protection
    assert protection.sat_out
    assert protection.epsilons()[0] <= 1.5
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert progress.round == len(rounds)
    assert min(r["clients"] for r in rounds) < 4
    asked = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    booked = {(c["round"], account) for c in charges(tmp_path / "run") for account, *_ in c["charges"]}
    assert {(line["round"], line["client"]) for line in asked} == booked


@pytest.mark.parametrize("stopped", [0, 3, 5])
def test_who_has_sat_out_is_told_after_a_resume_too(stopped, tmp_path, monkeypatch):
    """Stopped between charge and checkpoint, or resumed when all is done (0): rounds that were charged say it."""
    given = {"rounds": 5, "cohort": 4, "privacy": "dp_sgd(epsilon=1.5, noise_multiplier=0.8, at_budget=sit_out)"}
    whole, _ = trained(tmp_path / "whole", **given)
    commit, folder = Server.commit, tmp_path / "run"

    def stop(self, progress):
        if progress.round == stopped > 0:
            raise StopError
        commit(self, progress)

    with monkeypatch.context() as patch, pytest.raises(StopError) if stopped else nullcontext():
        patch.setattr(Server, "commit", stop)
        trained(folder, **given)
    resumed, _ = trained(folder, **given)
    sat_out = resumed.protection.summary()["privacy"]["sat_out"]
    assert sat_out == whole.protection.summary()["privacy"]["sat_out"] != []


def test_a_spent_population_ends_the_run(tmp_path):
    given = {"rounds": 4, "privacy": "user_dp(epsilon=3, noise_multiplier=1, dp_delta=0.01, at_budget=sit_out)"}
    simulation, progress = trained(tmp_path / "run", **given)
    assert 0 < progress.round < 4
    assert simulation.protection.epsilons()[0] <= 3


@pytest.mark.fast
def test_profiles_that_change_between_a_kill_and_a_resume_are_charged_anew(tmp_path):
    """The file keeps its name: what it says belongs to a round's identity."""
    folder, file = tmp_path / "run", tmp_path / "clients.toml"
    folder.mkdir()
    booked = []
    for steps in (5, 50):
        file.write_text(f"[[profile]]\ncount = 6\nlocal_steps = {steps}\n")
        config = RunConfig(**{**TINY, "privacy": "dp_sgd(noise_multiplier=1)", "clients": str(file)})
        simulation = Simulation(config, folder, ConsoleObserver(QUIET))
        protection = simulation.protection
        protection.open(resumed=bool(booked))
        entry = protection.enter(
            1, ServerState(round=0, adapter={}).compute_digest(), simulation.sampler.draw(config.seed, 1)
        )
        booked.append({count for _, _, _, count in charges(folder)[-1]["charges"]})
    assert booked == [{5}, {50}]
    assert entry.attempt == 1

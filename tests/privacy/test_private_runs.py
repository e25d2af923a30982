"""Privacy in whole runs: refusals, the ledger over kills and resumes, budgets, secret cohorts, what is reported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from fedpeft.config import RunConfig
from fedpeft.errors import FedpeftError, PrivacyError
from fedpeft.privacy.accountant import epsilon
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.ledger import POPULATION, Ledger
from fedpeft.run.console import ConsoleObserver
from fedpeft.run.records import Records
from fedpeft.server.acceptance import Acceptance
from fedpeft.server.exchange import Exchange
from fedpeft.server.progress import Checkpoints, Progress
from fedpeft.server.rounds import Server
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from tests.here import Federation

TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 3, "rounds": 2, "workers": 1, "seed": 3,
        "head": "zero", "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "dtype": "fp32",
        "learning_rate": 3e-3, "optimizer": "adamw(warmup=8, head_rate=1.0)",
        "measure": "validation(every=100)"}  # fmt: skip
QUIET = Console(quiet=True)


class StopError(Exception):
    pass


def trained(folder: Path, **given):
    simulation = Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(QUIET))
    folder.mkdir(parents=True, exist_ok=True)
    return simulation, simulation.train(simulation.server(Records(folder)))


def charges(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()[1:]]


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"privacy": "dp_sgd"}, "needs epsilon or noise_multiplier"),
        ({"privacy": "dp_sgd(epsilon=8)", "strategy": "fedit(weighting=rows)"}, "leave it out"),
        ({"privacy": "dp_sgd(epsilon=8)", "head": "ridge"}, "use --head zero"),
        (
            {"privacy": "dp_sgd(epsilon=8)", "drift": "scaffold", "optimizer": "sgd(head_rate=1.0)"},
            "leave it out of --drift",
        ),
        ({"privacy": "dp_sgd(epsilon=8, dp_delta=0.1)"}, "must be below"),
        ({"privacy": "user_dp(epsilon=8, dp_delta=0.2)"}, "must be below"),
        (
            {"privacy": "user_dp(epsilon=8)", "strategy": "flexlora"},
            "take fedit, fedsvd, ffa_lora, flasc or rolora, or protect",
        ),
        (
            {"privacy": "user_dp(epsilon=8)", "strategy": "raflora"},
            "take fedit, fedsvd, ffa_lora, flasc or rolora, or protect",
        ),
        ({"privacy": "user_dp(epsilon=8)", "strategy": "fedsa_lora"}, "raw_metrics=True"),
        ({"privacy": "user_dp(epsilon=8)", "codec": "by_rows | adaptive(bits=1) | rans"}, "name the codec alone"),
        ({"privacy": "dp_sgd(epsilon=8)", "codec": "over_time | adaptive(bits=1) | rans"}, "leave it out"),
        ({"privacy": "user_dp(epsilon=8, quantile=0.5, count_noise=0.01)"}, "needs count_noise above"),
        ({"privacy": "dp_sgd(noise_multiplier=1, at_budget=sit_out)"}, "needs a budget"),
        ({"privacy": "dp_sdg(epsilon=8)"}, "did you mean 'dp_sgd'"),
    ],
)
def test_unsound_settings_are_refused_in_a_sentence(tmp_path, given, says):
    with pytest.raises(FedpeftError, match=says.replace("(", r"\(")) as error:
        Simulation(RunConfig(**{**TINY, **given}), tmp_path / "run", ConsoleObserver(QUIET))
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------- the ledger


def test_the_noise_of_a_budget_spends_it_and_no_more(tmp_path):
    simulation, _ = trained(tmp_path / "run", privacy="dp_sgd(epsilon=3, clip=0.5)")
    worst, median = simulation.protection.epsilons()
    assert 2.9 < worst <= 3
    assert median <= worst
    spent = simulation.protection.ledger.spent
    assert worst == max(epsilon(events, simulation.protection.delta) for events in spent.values())
    federation = simulation.protection.federation
    for client, events in spent.items():
        [(event, steps)] = events.items()
        assert event.rate == min(1.0, 4 / federation.rows[client])
        assert steps == 2 * federation.participations[client]


def test_the_charge_is_on_disk_before_anyone_is_asked(tmp_path, monkeypatch):
    seen = []
    ask = Exchange.in_order

    def exchange(self, instructions, total, phase):
        seen.append((phase, len(charges(tmp_path / "run"))))
        return ask(self, instructions, total, phase)

    monkeypatch.setattr(Exchange, "in_order", exchange)
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


@pytest.mark.parametrize("step", ["charge", "in_order", "add", "append", "commit"])
def test_a_run_stopped_after_any_step_is_charged_for_all_that_it_released(tmp_path, monkeypatch, step):
    """In round 2: after the charge, the cohort's training, the first update's arrival, the records, the checkpoint."""
    owner = {"charge": Ledger, "in_order": Exchange, "append": Records, "add": Acceptance}.get(step, Server)
    whole, folder, given = getattr(owner, step), tmp_path / "run", {"privacy": "dp_sgd(epsilon=3, test_noise=True)"}

    def stop(self, *arguments):
        done = whole(self, *arguments)
        if step == "in_order":
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
    """Other noise on the same data is a second release; the ledger then knows of three rounds, and the budget of two
    is spent: without at_budget=sit_out the run refuses to go on."""
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
    with pytest.raises(PrivacyError, match="what the run has spent is unknown"):
        trained(tmp_path / "run", privacy="user_dp(epsilon=3)")


def test_a_spent_budget_ends_the_run_or_lets_clients_sit_out(tmp_path):
    given = {"rounds": 5, "cohort": 4, "privacy": "dp_sgd(epsilon=1.5, noise_multiplier=0.8)"}
    with pytest.raises(PrivacyError, match="at_budget=sit_out"):
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


def test_a_spent_population_ends_the_run(tmp_path):
    given = {"rounds": 4, "privacy": "user_dp(epsilon=3, noise_multiplier=1, dp_delta=0.01, at_budget=sit_out)"}
    simulation, progress = trained(tmp_path / "run", **given)
    assert 0 < progress.round < 4
    assert simulation.protection.epsilons()[0] <= 3


def test_a_poisson_cohort_is_secret_may_be_empty_and_is_charged(tmp_path):
    given = {"rounds": 6, "cohort": 1, "privacy": "user_dp(noise_multiplier=1, test_noise=True)", "seed": 1}
    simulation, progress = trained(tmp_path / "run", **given)
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    sizes = [sum(line["round"] == r["round"] for line in lines) for r in rounds]
    assert 0 in sizes, "another seed is needed: no cohort was empty"
    assert max(sizes) != min(sizes)
    assert all(r["update_norm"] > 0 for r in rounds)
    [(event, releases)] = simulation.protection.ledger.spent[POPULATION].items()
    assert (event.rate, releases) == (1 / 6, 6)
    assert progress.round == 6


@pytest.mark.parametrize("killed", ["save", "append"])
def test_a_round_is_told_of_once_its_checkpoint_is_safe_and_only_once(killed, tmp_path, monkeypatch):
    """Before that, user_dp may still answer anew, with other reports under the same noise."""
    given = {"privacy": "user_dp(noise_multiplier=1, test_noise=True)"}
    owner, plain = (Checkpoints, Checkpoints.save) if killed == "save" else (Records, Records.append)

    def die(self, *arguments):
        progress_or_name = arguments[0]
        if (getattr(progress_or_name, "round", None) == 2) or (killed == "append" and '"round": 1,' in seen()):
            raise StopError
        plain(self, *arguments)

    def seen() -> str:
        file = tmp_path / "cut" / "rounds.jsonl"
        return file.read_text() if file.exists() else ""

    with monkeypatch.context() as patch:
        patch.setattr(owner, killed, die)
        with pytest.raises(StopError):
            trained(tmp_path / "cut", **given)
    assert [json.loads(line)["round"] for line in seen().splitlines()] == [1]
    assert Checkpoints(tmp_path / "cut" / "checkpoint").load().round == (1 if killed == "save" else 2)
    trained(tmp_path / "cut", **given)
    trained(tmp_path / "whole", **given)
    for name in ("rounds.jsonl", "clients.jsonl"):
        lines = [Records(tmp_path / f).read(name) for f in ("cut", "whole")]
        cut, whole = ([{k: v for k, v in line.items() if k != "seconds"} for line in found] for found in lines)
        assert cut == whole


def test_record_lines_are_on_the_disk_before_the_checkpoint_that_counts_them(tmp_path, monkeypatch):
    order = []
    fsync = os.fsync

    def note(descriptor):
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition(".")[0])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    trained(tmp_path / "run")
    first, last = order.index("000002"), order.index("000003")
    assert {"rounds", "clients"} <= set(order[first:last])


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
        entry = protection.enter(1, Progress(round=0, adapter={}).digest(), simulation.sampler.draw(config.seed, 1))
        booked.append({count for _, _, _, count in charges(folder)[-1]["charges"]})
    assert booked == [{5}, {50}]
    assert entry.attempt == 1


# ------------------------------------------------------------------------------------------------------ what is told


def open_to_others(folder: Path) -> set[str]:
    """What others may read in a run's folder, relative to it; what lies in a closed folder is closed."""
    found = set()
    for path in folder.iterdir():
        if path.stat().st_mode & 0o077:
            found |= {path.name} | {f"{path.name}/{below}" for below in (open_to_others(path) if path.is_dir() else ())}
        elif path.is_dir():
            found |= {f"{path.name}/{p.name}" for p in path.rglob("*") if p.stat().st_mode & 0o077}
    return found


USER_DP = {"privacy": "user_dp(noise_multiplier=1, test_noise=True)", "cohort": 2, "rounds": 4}
CLOSED = {"clients.jsonl", "checkpoint", "ledger.jsonl", "privacy.key"}


def told(folder: Path) -> list[dict]:
    """The rounds as others see them, without what follows from the noisy adapter, or from the public schedule."""
    known = ("round", "learning_rate", "loss", "accuracy", "update_norm")
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in known} for r in rounds]


def test_a_run_that_stops_in_round_1_has_told_nobody_who_took_part(tmp_path, monkeypatch, capsys):
    def stop(self, result):
        plain(self, result)
        raise KeyboardInterrupt

    plain = ConsoleObserver.round_done
    monkeypatch.setattr(ConsoleObserver, "round_done", stop)
    given = {**TINY, **USER_DP, "codec": "ef14 | small", "cohort": 4}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in given.items()]
    before = os.umask(0)
    try:
        assert main([*words, "--output", str(tmp_path / "run")]) == 130
    finally:
        os.umask(before)
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} >= CLOSED | {"clients"}
    assert open_to_others(folder) <= {"config.toml", "rounds.jsonl", ".lock"}
    assert any((folder / "clients").iterdir())
    assert "  4 clients  " in capsys.readouterr().out


@pytest.mark.parametrize("downlink", ["auto", "small"])
def test_rounds_with_a_secret_cohort_all_look_alike(downlink, tmp_path, monkeypatch, capsys):
    heard = []
    monkeypatch.setattr(ConsoleObserver, "client_done", lambda _self, phase, *_: heard.append(phase))
    given = {**USER_DP, "downlink": downlink}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in ({**TINY, **given}).items()]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    sizes = [sum(line["round"] == r + 1 for line in lines) for r in range(4)]
    assert len(set(sizes)) > 1, "another seed is needed: all cohorts are equal"
    first, *others = told(tmp_path / "run")  # the first sends B, which is zero, down, and A as it was up: fewer bytes
    if downlink == "auto":
        assert all(other == others[0] for other in others)
    assert {r["clients"] for r in (first, *others)} == {2}
    one = next(line for line in lines if line["round"] == 3)
    assert others[1]["uplink_bytes"] == pytest.approx(2 * one["uplink_bytes"], rel=0.01)
    assert others[1]["downlink_bytes"] == pytest.approx(2 * one["downlink_bytes"], rel=0.01)
    assert "train" not in heard
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["uplink_bytes"] == sum(r["uplink_bytes"] for r in (first, *others))
    assert (tmp_path / "run" / "clients.npz").stat().st_mode & 0o077 == 0
    shown = capsys.readouterr().out
    assert shown.count("  2 clients  ") == 4
    assert not any(f"  {size} clients  " in shown for size in set(sizes) - {2})


def test_a_server_of_real_clients_tells_no_more_of_a_secret_cohort(tmp_path):
    made = Federation(tmp_path, ConsoleObserver(QUIET), rounds=4, cohort=1, privacy="user_dp(noise_multiplier=1)")
    before = os.umask(0)
    try:
        made.run()
    finally:
        os.umask(before)
    folder = tmp_path / "server"
    first, *others = told(folder)
    assert all(other == others[0] for other in others)
    assert first["clients"] == 1
    assert open_to_others(folder) <= {"rounds.jsonl", "roster.json"}
    assert (folder / "clients.jsonl").exists()


def test_no_raw_metric_leaves_a_client(tmp_path):
    for privacy, silent in (
        ("dp_sgd(noise_multiplier=1)", True),
        ("dp_sgd(noise_multiplier=1, raw_metrics=True)", False),
    ):
        folder = tmp_path / str(silent)
        trained(folder, privacy=privacy)
        lines = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
        rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        assert all((line["loss"] is None) == silent == (line["rows"] is None) for line in lines)
        assert all((line["train_loss"] is None) == silent for line in rounds)
        assert all(line["confidential"] for line in lines)


def test_the_reference_without_protection_is_a_plain_run_with_uniform_weights(tmp_path):
    """It trains as one, bit for bit, and reports as one; rules that go by what clients report may be used."""
    told, adapters = [], []
    for name, given in (("plain", {"strategy": "fedit(weighting=uniform)"}), ("reference", {"privacy": "none"})):
        adapters.append(trained(tmp_path / name, **given)[1].adapter)
        lines = [json.loads(line) for line in (tmp_path / name / "clients.jsonl").read_text().splitlines()]
        rounds = [json.loads(line) for line in (tmp_path / name / "rounds.jsonl").read_text().splitlines()]
        told.append(([(li["client"], li["rows"], li["loss"]) for li in lines], [r["train_loss"] for r in rounds]))
    assert told[0] == told[1]
    assert all(loss > 0 for loss in told[0][1])
    assert all(torch.equal(adapters[0][n], adapters[1][n]) for n in adapters[0])
    for given in ({"strategy": "fedsa_lora"}, {"codec": "over_time | adaptive(bits=1) | rans"}):
        _, progress = trained(tmp_path / next(iter(given)), privacy="none", **given)
        assert progress.round == 2


def test_the_summary_says_what_is_claimed(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["--" + k.replace("_", "-") + f"={v}" for k, v in TINY.items()]
    assert main([*words, "--privacy", "dp_sgd(epsilon=8, test_noise=True)", "--output", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["partition"]["label_entropy"] is summary["partition"]["label_distance"] is None
    assert "label skew" not in capsys.readouterr().out
    assert 0 < summary["epsilon_median"] <= summary["epsilon"] <= 8
    assert summary["dp_delta"] < 1 / 90
    privacy = summary["privacy"]
    assert privacy["unit"] == "training row"
    assert privacy["test_noise"] is True
    assert privacy["weighting"] == "uniform"
    assert any("stopped" in item for item in privacy["not_covered"])
    assert {(folder / n).stat().st_mode & 0o077 for n in ("clients.jsonl", "clients.npz", "privacy.key", LEDGER)} == {0}


def test_equal_seeds_give_equal_runs_with_test_noise_only(tmp_path):
    runs = []
    for i, privacy in enumerate(("user_dp(noise_multiplier=1)", "user_dp(noise_multiplier=1, test_noise=True)") * 2):
        runs.append(trained(tmp_path / str(i), privacy=privacy)[1].adapter)
    equal = [all(torch.equal(runs[i][n], runs[i + 2][n]) for n in runs[i]) for i in (0, 1)]
    assert equal == [False, True]


def test_executors_and_plain_runs_agree_without_clipping_and_noise(tmp_path):
    """All clients, q = 1, a huge clip, no noise: the mean of plain local training."""
    given = {
        "dtype": "fp64",
        "cohort": "all",
        "optimizer": "sgd(head_rate=1.0)",
        "strategy": "fedit(weighting=uniform)",
        "learning_rate": 0.1,
    }
    _, plain = trained(tmp_path / "plain", **given)
    given.pop("strategy")
    _, user = trained(tmp_path / "user", privacy="user_dp(noise_multiplier=0, clip=1e9)", **given)
    for name in plain.adapter:
        assert torch.allclose(plain.adapter[name], user.adapter[name], rtol=1e-9, atol=1e-12)
        assert np.isfinite(plain.adapter[name]).all()


FEW_BITS = '[[profile]]\ncount = 3\nbase = "nf4"\n[[profile]]\ncount = 1\nbase = "int8"\n[[profile]]\ncount = 2\n'


@pytest.mark.parametrize("base", ["qlora", "profiles"])
def test_rows_are_protected_on_a_base_of_few_bits(tmp_path, base):
    """Without clipping and noise, at q = 1, it is the plain run on that base; with them it trains and is charged."""
    (tmp_path / "few.toml").write_text(FEW_BITS)
    own = {"qlora": {"peft": "qlora(rank=2, layers=1)"}, "profiles": {"clients": str(tmp_path / "few.toml")}}[base]
    given = {"cohort": "all", "optimizer": "sgd(head_rate=1.0)", "learning_rate": 0.1, "batch_size": 1000, **own}
    _, plain = trained(
        tmp_path / "plain", strategy="fedit(weighting=uniform)", grid="cohort(executor=sequential)", **given
    )
    _, whole = trained(tmp_path / "whole", privacy="dp_sgd(noise_multiplier=0, clip=1e9)", **given)
    unpacked_settings = {**given, "peft": TINY["peft"], "clients": TINY["clients"]}
    _, unpacked = trained(tmp_path / "unpacked", strategy="fedit(weighting=uniform)", **unpacked_settings)
    for name, tensor in plain.adapter.items():
        moved = (tensor - plain.started[name]).norm()
        assert moved > 0
        assert (whole.adapter[name] - tensor).norm() < 1e-4 * moved, name
        assert (unpacked.adapter[name] - tensor).norm() > 1e-3 * moved, "the base makes no difference"
    simulation, noised = trained(
        tmp_path / "noised", privacy="dp_sgd(epsilon=3, clip=0.5)", **{**given, "batch_size": 4}
    )
    assert 2.9 < simulation.protection.epsilons()[0] <= 3
    assert all(bool(t.isfinite().all()) and not torch.equal(t, noised.started[n]) for n, t in noised.adapter.items())


@pytest.mark.slow
def test_kill_9_at_any_time_never_loses_a_charge(tmp_path):
    """Killed again and again, the ledger holds a charge for every round that left a trace, and resumes end the run."""
    folder, words = tmp_path / "run", ["--" + k.replace("_", "-") + f"={v}" for k, v in {**TINY, "rounds": 12}.items()]
    command = [sys.executable, "-m", "fedpeft.simulate"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = [*command, *words, "--privacy", "user_dp(noise_multiplier=1)", "--output", str(folder)]
    for kills, wanted in enumerate((2, 7)):
        process = subprocess.Popen(
            first if not kills else [*command, "--resume", str(folder)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (folder / LEDGER).exists() and len((folder / LEDGER).read_text().splitlines()) > wanted:
                break
            time.sleep(0.005)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        traces = len(Records(folder).read("rounds.jsonl"))
        assert len({c["round"] for c in charges(folder)}) >= traces
    shutil.copytree(folder, tmp_path / "copy")
    simulation, progress = trained(tmp_path / "copy", rounds=12, privacy="user_dp(noise_multiplier=1)")
    assert progress.round == 12
    [(_, releases)] = simulation.protection.ledger.spent[POPULATION].items()
    assert releases == len(charges(tmp_path / "copy")) >= 12

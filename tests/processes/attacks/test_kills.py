"""A hundred kills at random moments, over ten set-ups: nothing is lost, applied twice or released twice.

A simulation or a study that was killed ends with the files of one that was not, bit for bit; a ledger holds at least
what was released; a federation of real clients ends with the state of a simulation.
"""

from __future__ import annotations

import json
import random
import re

import pytest

from fedpeft.privacy.engine import LEDGER
from fedpeft.simulate import main as simulate
from fedpeft.wiring.config import RunConfig
from tests.attacks.killing import Killer, timed
from tests.attacks.scale import SEED, SETUPS, SMALL, configuration, scaled
from tests.fleet import NAMES, apart, havoc

KILLS = 100
EACH = -(-KILLS // 10)
TIMES = ("seconds", "training_seconds", "aggregation_seconds")


def lines(file, without=TIMES):
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in without} for line in found]


def ledger(run):
    return lines(run / LEDGER)[1:] if (run / LEDGER).exists() else []


@pytest.mark.long
@pytest.mark.parametrize("setup", SETUPS)
def test_a_killed_simulation_is_that_of_one_that_was_not(setup, tmp_path):
    settings, log = tmp_path / "run.toml", str(tmp_path / "log")
    settings.write_text(configuration(setup).to_toml())
    whole = tmp_path / "whole"
    seconds = timed("simulate", [str(settings), "--output", str(whole)], log)
    killer, runs = Killer("simulate", log, seconds, random.Random(f"{SEED} {setup}")), 0
    while killer.kills < scaled(EACH):
        cut = tmp_path / f"cut {runs}"

        def again(cut=cut):
            if (cut / "config.toml").exists():
                return ["--resume", str(cut)]
            return [str(settings), "--output", str(cut)]

        killer.run(again, scaled(EACH))
        runs += 1
        assert lines(cut / "clients.jsonl") == lines(whole / "clients.jsonl")
        assert lines(cut / "rounds.jsonl") == lines(whole / "rounds.jsonl")
        for name in ("adapter_model.safetensors", "head.safetensors"):
            assert (cut / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()
        charged = {(line["round"], line["attempt"]) for line in ledger(cut)}
        assert charged >= {(line["round"], line["attempt"]) for line in ledger(whole)}
        assert len(charged) == len(ledger(cut)), "a charge was written twice"
    print(f"{setup}: {killer.kills} kills, {runs} runs")


@pytest.mark.long
def test_a_killed_study_is_that_of_one_that_was_not(tmp_path):
    log = str(tmp_path / "log")
    axes = '[axes]\nstrategy = ["fedit", "flora"]\n'
    base = re.sub(r"^(seed|strategy) = .*$", "", RunConfig(**{**SMALL, "rounds": 2}).to_toml(), flags=re.MULTILINE)
    text = f"seeds = [0, 1]\n[base]\n{base}\n{axes}"
    folders = [tmp_path / "whole", *(tmp_path / f"cut {n}" for n in range(100))]

    def made(folder):
        folder.mkdir()
        (folder / "study.toml").write_text(text)
        return [str(folder / "study.toml"), "--jobs", "1"]

    def results(folder):
        found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        assert all(line["status"] == "finished" for line in found)
        return {json.dumps([line["point"], line["seed"]]): (line["correct"], line["summary"]["loss"]) for line in found}

    arguments = made(folders[0])
    killer, runs = Killer("study", log, timed("study", arguments, log), random.Random(f"{SEED} study")), 0
    while killer.kills < scaled(EACH):
        cut = folders[1 + runs]
        arguments = made(cut)
        killer.run(lambda words=arguments: words, scaled(EACH))
        runs += 1
        assert results(cut) == results(folders[0])
    print(f"study: {killer.kills} kills, {runs} studies")


FEDERATIONS = {
    "plain": {"optimizer": "adamw(head_rate=1.0, schedule=constant)", "codec": "ef21 | topk(fraction=0.1)"},
    "secure sums": {"optimizer": "sgd(schedule=constant)", "privacy": "secure_sum"},
    "shared noise": {
        "optimizer": "sgd(schedule=constant)",
        "head": "zero",
        "local_work": "epochs(1.0)",
        "batch_size": 64,
        "privacy": "distributed_dp(noise_multiplier=2, rows=900, test_noise=True)",
    },
}


@pytest.mark.long
@pytest.mark.parametrize("kind", FEDERATIONS)
def test_killed_clients_and_servers_end_with_the_state_of_a_simulation(fleet, kind):
    made = fleet(rounds=4000, measure="validation(every=4000)", **FEDERATIONS[kind])
    finished = havoc(made, seconds=0, least=scaled(EACH))
    words = ["--output", str(made.folder / "simulated"), "--rounds", str(finished)]
    assert simulate([str(made.folder / "run.toml"), *words]) == 0
    assert apart(made) < 1e-6
    told = lines(made.folder / "run" / "clients.jsonl")
    assert len({(line["round"], line["client"]) for line in told}) == len(told) == 3 * finished
    assert not [line for line in told if line.get("rejected")]
    if kind == "shared noise":
        check_books(made, finished)


def check_books(made, finished):
    """Check that a sum resumed by a killed server is charged once by the server and by each client."""
    for k, name in enumerate(NAMES):
        [home] = (made.folder / "state").glob(f"*/{name}")
        own = sum(charge[3] for line in ledger(home) for charge in line["charges"])
        book = sum(charge[3] for line in ledger(made.folder / "run") for charge in line["charges"] if charge[0] == k)
        print(f"{name}: {finished} sums applied, {own} in its ledger, {book} in the server's")
        assert finished <= own <= finished + 1
        assert own <= book

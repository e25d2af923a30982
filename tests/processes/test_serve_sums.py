"""Secure sums of real clients as users run them: processes that are killed, or drop out, at every step."""

from __future__ import annotations

import json
import signal
from collections import Counter

import numpy as np
import pytest

from fedpeft.commands.certs import main as certs
from fedpeft.privacy.engine import LEDGER
from fedpeft.simulate import main as simulate
from tests.fleet import NAMES, apart, distance
from tests.mortal import started

FIVE = ("a", "b", "c", "d", "e")


@pytest.mark.slow
def test_real_clients_with_a_pinned_roster_end_with_the_adapter_of_the_simulation(fleet, capsys):
    made = fleet(privacy="secure_sum")
    assert certs(["--folder", str(made.folder / "certs"), "--roster"]) == 0
    told = capsys.readouterr().out.partition("hash ")[2][:64]
    pinned = ["--roster", "certs/roster.txt", "--roster-hash", told]
    server = made.serve("--eval-data", "dataset")
    clients = [made.join(name, *pinned) for name in NAMES]
    assert [made.end(p, 900) for p in (server, *clients)] == [0, 0, 0, 0], made.logs()
    assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
    assert distance(made.folder / "run", made.folder / "simulated") < 1e-6
    assert f"3 clients, hash {told}" in made.log("a")
    assert "3 clients or more" in made.log("a")
    members = json.loads((made.folder / "run" / "roster.json").read_text())["members"]
    assert [m["rows"] for m in members] == [1, 1, 1]
    lines = [json.loads(line) for line in (made.folder / "run" / "clients.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(line["rows"] is line["loss"] is line["steps"] is line["seconds"] is None for line in lines)


SHARED = {
    "privacy": "distributed_dp(noise_multiplier=0.5, rows=900, dropouts=0.2, test_noise=True)", "head": "zero",
    "batch_size": 64, "local_work": "epochs(1.0)", "learning_rate": 0.1, "optimizer": "sgd(schedule=constant)",
}  # fmt: skip


def charges(folder):
    """Return the number of charges in a ledger, by account."""
    found: Counter[int] = Counter()
    for line in (folder / LEDGER).read_text().splitlines()[1:]:
        for client, _, _, count, *_ in json.loads(line)["charges"]:
            found[client] += count
    return found


def homes(made, names):
    [run] = [folder for folder in (made.folder / "state").iterdir() if folder.name != "ledgers"]
    return [run / name for name in names]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"head": "private_centroids", "privacy": "distributed_dp(epsilon=8, rows=900, start=0.5, test_noise=True)"},
        {"privacy": "distributed_dp(noise_multiplier=0.5, unit=clients, dp_delta=0.001, test_noise=True)"},
        {
            "head": "private_ridge(dimensions=32)",
            "peft": "linear_probe",
            "privacy": "distributed_dp(epsilon=8, rows=900, start=0.5, whiten=True, test_noise=True)",
        },
    ],
    ids=["rows", "start", "clients", "whitened"],
)
def test_real_clients_that_share_noise_end_with_the_adapter_of_the_simulation(fleet, more):
    made = fleet(**SHARED | more)
    server = made.serve()
    clients = [made.join(name) for name in NAMES]
    assert [made.end(p, 900) for p in (server, *clients)] == [0, 0, 0, 0], made.logs()
    assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
    assert apart(made) < 1e-8
    planned = charges(made.folder / "simulated")
    assert charges(made.folder / "run") == planned
    assert planned == dict.fromkeys(range(3), 3 if "head" in more else 2)
    assert [charges(home) for home in homes(made, NAMES)] == [{0: planned[k]} for k in range(3)]
    both = [json.loads((made.folder / name / "summary.json").read_text()) for name in ("run", "simulated")]
    assert both[0]["epsilon"] == both[1]["epsilon"] > 0
    assert "a share of the noise from this machine" in made.log("a")
    assert f"privacy: epsilon {both[0]['epsilon']:.3g} at dp_delta" in made.log("a")


DEATHS = ["0 3 during", "1 1 during", "2 2 after", "3 3 before", "4 3 after", "5 4 during", "6 5 during", "6 5 after"]
"""Of the server: round, step, and when."""


@pytest.mark.long
@pytest.mark.parametrize("shared", [False, True], ids=["secure sums", "shared noise"])
def test_kills_and_dropouts_at_every_step_leave_each_sum_that_of_the_integers(fleet, shared):
    """In rounds 1 to 5 a client each is killed at one of the steps, and comes back: nobody is missing from a sum.

    In rounds 7 to 11 a client each drops out at one of the steps; in round 12 so many that there is no sum.
    """
    given = SHARED if shared else {"privacy": "secure_sum"}
    made = fleet(names=FIVE, **given, rounds=13, measure="validation(every=13, keep=last)")
    deaths = [death for death in DEATHS if not shared or death[0] != "0"]  # there is no sum before round 1
    leaving = {name: [f"{7 + k} {k + 1} drop"] + ["12 4 drop"] * (k < 2) for k, name in enumerate(FIVE)}
    dying = {name: f"{k + 1} {k + 1} {('before', 'after')[k % 2]}" for k, name in enumerate(FIVE)}

    def join(name, *more):
        words = ["--server", f"127.0.0.1:{made.port}", "--data", f"{name}.jsonl", "--certs", f"certs/clients/{name}",
                 "--state", "state", "--threads", "1"]  # fmt: skip
        return started(made.folder, name, words, [*leaving[name], *more])

    def serve(*points):
        new = ["run.toml", "--listen", f"127.0.0.1:{made.port}", "--output", "run"]
        resumed = (made.folder / "run" / "config.toml").exists()
        return started(made.folder, "serve", ["--resume", "run"] if resumed else new, points)

    everybody = {"serve": serve(deaths[0])} | {name: join(name, dying[name]) for name in FIVE}
    killed = dict.fromkeys(everybody, 0)

    def over() -> bool:
        for name, process in everybody.items():
            if process.exitcode == -signal.SIGKILL:
                killed[name] += 1
                next_death = deaths[killed["serve"] : killed["serve"] + 1]
                everybody[name] = serve(*next_death) if name == "serve" else join(name)
        return everybody["serve"].exitcode is not None

    try:
        made.wait(over, seconds=3600)
        for process in everybody.values():
            process.join(300)
    finally:
        for process in everybody.values():
            process.kill()
    assert [process.exitcode for process in everybody.values()] == [0] * 6, made.logs()
    assert killed == {"serve": len(deaths)} | dict.fromkeys(FIVE, 1)

    check_sums(made, range(1 if shared else 0, 14))
    rounds = made.rounds()
    assert [r["round"] for r in rounds] == list(range(1 if shared else 0, 14))
    assert rounds[-2]["update_norm"] == 0 < rounds[-1]["update_norm"]
    if not shared:
        assert [r["rejected"] for r in rounds] == [0] * 7 + [1, 1, 1, 0, 0, 5, 0]
        assert "round 12: FP6116" in made.log("serve")
        return
    for k, (name, home) in enumerate(zip(FIVE, homes(made, FIVE), strict=True)):
        own, book = charges(home)[0], charges(made.folder / "run")[k]
        left = k < 3  # one of its vectors was not sent
        assert 13 - left <= own <= 13 - left + 1, f"{name} was killed once"
        assert book == 13, "a sum that a killed server goes on with is charged once"


def check_sums(made, rounds) -> None:
    """Each is that of the integers of those whose vectors have arrived."""
    added = made.folder / "added"
    for round_number in rounds:
        if round_number == 12:
            assert not (added / "12.json").exists()
            continue
        bits, survivors = json.loads((added / f"{round_number}.json").read_text())
        left = (
            {round_number - 7} if 7 <= round_number <= 9 else set()
        )  # those of rounds 10 and 11 had sent their vectors
        assert survivors == sorted(set(range(5)) - left), round_number
        plain = sum(np.load(added / f"{round_number}-{client}.npy").astype(np.uint64) for client in survivors)
        np.testing.assert_array_equal(np.load(added / f"{round_number}-sum.npy"), plain % 2**bits)

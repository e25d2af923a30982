"""Secure sums of real clients as users run them: processes that are killed, or drop out, at every step."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

from fedpeft.certs import main as certs
from fedpeft.simulate import main as simulate
from tests.fleet import NAMES, distance
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


DEATHS = ["0 3 during", "1 1 during", "2 2 after", "3 3 before", "4 3 after", "5 4 during", "6 5 during", "6 5 after"]
"""Of the server: round, step, and when."""


@pytest.mark.long
def test_kills_and_dropouts_at_every_step_leave_each_sum_that_of_the_integers(fleet):
    """In rounds 1 to 5 a client each is killed at one of the steps, and comes back: nobody is missing from a sum.

    In rounds 7 to 11 a client each drops out at one of the steps; in round 12 so many that there is no sum.
    """
    made = fleet(names=FIVE, privacy="secure_sum", rounds=13, measure="validation(every=13)")
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

    everybody = {"serve": serve(DEATHS[0])} | {name: join(name, dying[name]) for name in FIVE}
    killed = dict.fromkeys(everybody, 0)

    def over() -> bool:
        for name, process in everybody.items():
            if process.exitcode == -signal.SIGKILL:
                killed[name] += 1
                next_death = DEATHS[killed["serve"] : killed["serve"] + 1]
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
    assert killed == {"serve": len(DEATHS)} | dict.fromkeys(FIVE, 1)

    added = made.folder / "added"
    for round in (*range(12), 13):
        bits, survivors = json.loads((added / f"{round}.json").read_text())
        left = {round - 7} if 7 <= round <= 9 else set()  # those of rounds 10 and 11 had sent their vectors
        assert survivors == sorted(set(range(5)) - left), round
        plain = sum(np.load(added / f"{round}-{client}.npy").astype(np.uint64) for client in survivors)
        np.testing.assert_array_equal(np.load(added / f"{round}-sum.npy"), plain % 2**bits)
    assert not (added / "12.json").exists()
    rounds = made.rounds()
    assert [r["round"] for r in rounds] == list(range(14))
    assert [r["rejected"] for r in rounds] == [0] * 7 + [1, 1, 1, 0, 0, 5, 0]
    assert rounds[12]["update_norm"] == 0 < rounds[13]["update_norm"]
    assert "round 12: the sum is void" in made.log("serve")

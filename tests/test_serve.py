"""A server and its clients as users run them: processes, certificates, loopback."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections import Counter

import pytest

from fedpeft.checkpoint import Checkpoints
from fedpeft.simulate import main as simulate
from tests.fleet import NAMES, Wire, apart, distance

BESIDE = 12_000
"""Bytes of a client's two connections, its calls and the settings that it is told, at most: see docs/deploy.md."""


@pytest.mark.slow
def test_real_clients_end_with_the_adapter_of_the_simulation(fleet):
    made = fleet()
    server = made.serve("--eval-data", "dataset")
    wire = Wire(made.port)
    clients = [made.join(name, port=wire.port) for name in reversed(NAMES)]
    assert [made.end(p) for p in (server, *clients)] == [0, 0, 0, 0], made.logs()
    assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
    assert distance(made.folder / "run", made.folder / "simulated") < 1e-6
    real, simulated = (json.loads((made.folder / f / "summary.json").read_text()) for f in ("run", "simulated"))
    for key in ("accuracy", "loss", "uplink_bytes", "downlink_bytes", "prepare_bytes", "rejected"):
        assert real[key] == pytest.approx(simulated[key], rel=1e-6), key
    assert real["uplink_bytes"] < real["wire_received_bytes"] < 1.02 * real["uplink_bytes"] + 2000
    for reported, carried in ((real["wire_received_bytes"], wire.up), (real["wire_sent_bytes"], wire.down)):
        print(f"reported {reported}, carried {carried}, beside {carried - reported}")
        assert reported < carried < 1.003 * reported + 3 * BESIDE


@pytest.mark.slow
def test_kills_of_server_and_client_lose_nothing_and_apply_nothing_twice(fleet):
    """The adapter is that of the simulation, though the server and a client were killed in the middle of rounds."""
    made = fleet(rounds=8, evaluate_every=8)
    server = made.serve()
    clients = {name: made.join(name) for name in NAMES}
    made.wait(lambda: len(made.rounds()) >= 3, server)
    clients["b"].kill()
    made.wait(lambda: any(e["client"] == "b" for e in made.events("disconnected")), server)
    server.kill()
    server.wait()
    done = len(made.rounds())
    assert done < 9, "the run was over before it could be interrupted"
    clients["b"] = made.join("b")
    server = made.serve()
    assert [made.end(p) for p in (server, *clients.values())] == [0, 0, 0, 0], made.logs()
    assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
    assert distance(made.folder / "run", made.folder / "simulated") < 1e-6
    assert [r["round"] for r in made.rounds()] == list(range(9))
    lines = [json.loads(line) for line in (made.folder / "run" / "clients.jsonl").read_text().splitlines()]
    assert len({(line["round"], line["client"]) for line in lines}) == len(lines) == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "fedex_lora"},
        {"codec": "small", "downlink": "small"},
    ],
    ids=["residual", "lossy downlink"],
)
def test_what_else_travels_arrives(fleet, settings):
    """The base's residual, and a downlink with losses, lead real clients to where they lead the simulation's."""
    made = fleet(**settings)
    server = made.serve()
    clients = [made.join(name) for name in NAMES]
    assert [made.end(p) for p in (server, *clients)] == [0, 0, 0, 0], made.logs()
    assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
    assert apart(made) < 1e-8
    assert bool(Checkpoints(made.folder / "run" / "checkpoint").load().residual) == ("strategy" in settings)
    counts = (json.loads((made.folder / f / "summary.json").read_text()) for f in ("run", "simulated"))
    assert len({c["downlink_bytes"] for c in counts}) == 1


@pytest.mark.slow
def test_a_late_joiner_takes_part_and_own_rows_are_evaluated(fleet):
    """A round is held up by a client that is suspended until the newcomer is there: it can't come too late."""
    made = fleet(rounds=12, evaluate_every=1)
    server = made.serve("--wait-for", "2", "--held-out", "0.2")
    clients = {name: made.join(name) for name in ("a", "c")}
    made.wait(lambda: len(made.rounds()) >= 2, server)
    clients["a"].send_signal(signal.SIGSTOP)
    clients["b"] = made.join("b")
    made.wait(lambda: any(e["client"] == "b" for e in made.events("connected")), server)
    clients["a"].send_signal(signal.SIGCONT)
    assert [made.end(p) for p in (server, *clients.values())] == [0, 0, 0, 0], made.logs()
    rounds = made.rounds()
    assert [r["round"] for r in rounds] == list(range(13))
    assert (rounds[1]["clients"], rounds[-1]["clients"]) == (2, 3)
    members = json.loads((made.folder / "run" / "roster.json").read_text())["members"]
    assert {m["name"]: m["id"] for m in members} == {"a": 0, "c": 1, "b": 2}
    assert all(r["accuracy"] is not None for r in rounds)
    summary = json.loads((made.folder / "run" / "summary.json").read_text())
    assert summary["accuracy_of"] == "clients' own held-out rows, by rows"
    said = [re.findall(r"evaluate round 12: (\d+) rows, loss ([\d.]+)", made.log(name))[-1] for name in NAMES]
    total = sum(int(rows) for rows, _ in said)
    assert summary["loss"] == pytest.approx(sum(int(n) * float(loss) for n, loss in said) / total, abs=1e-3)


@pytest.mark.long
def test_chaos(fleet):
    """For some minutes, seeded: clients and the server are killed, asked to stop, and cut off, at random moments.

    The run ends, with the adapter of the simulation; no client's update of a round is applied twice.
    """
    seconds = float(os.environ.get("FEDPEFT_CHAOS_SECONDS", "180"))
    chance = random.Random(int(os.environ.get("FEDPEFT_CHAOS_SEED", "0")))
    made = fleet(rounds=400, evaluate_every=400, schedule="constant")
    server = made.serve("--patience", "60")
    wire = Wire(made.port)
    clients = {name: made.join(name, port=wire.port) for name in NAMES}
    deeds = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        time.sleep(chance.uniform(1, 8))
        deed = chance.choice(["client", "client", "server", "stop", "cut"])
        deeds[deed] += 1
        if deed == "client":
            name = chance.choice(NAMES)
            clients[name].kill()
            clients[name].wait()
            clients[name] = made.join(name, port=wire.port)
        elif deed == "cut":
            wire.cut.set()
            wire.break_all()
            time.sleep(chance.uniform(0.5, 5))
            wire.cut.clear()
        else:
            server.kill() if deed == "server" else server.terminate()
            made.end(server)
            server = made.serve()
    made.wait(lambda: len(made.rounds()) > 3, server, seconds=600)  # peace: on a slow machine nothing went on before
    finished = len(made.rounds()) - 1
    print(f"{finished} rounds in {seconds:.0f} s, {dict(deeds)}")
    assert sum(deeds.values()) > 3
    server.terminate()
    made.end(server)
    # What was trained so far must be what a simulation of as many rounds trains.
    finished = len(made.rounds()) - 1
    words = ["--output", str(made.folder / "simulated"), "--rounds", str(finished)]
    assert simulate([str(made.folder / "run.toml"), *words]) == 0
    real, simulated = (Checkpoints(made.folder / f / "checkpoint").load() for f in ("run", "simulated"))
    assert real is not None
    assert simulated is not None
    assert real.round == simulated.round == finished
    assert max(float((real.adapter[n] - simulated.adapter[n]).abs().max()) for n in real.adapter) < 1e-6
    lines = [json.loads(line) for line in (made.folder / "run" / "clients.jsonl").read_text().splitlines()]
    assert len({(line["round"], line["client"]) for line in lines}) == len(lines) == 3 * finished

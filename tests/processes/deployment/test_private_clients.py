"""Private federations as users run them: processes, mutual TLS, kills; test noise makes them end as simulations do."""

from __future__ import annotations

import json

import pytest

from fedpeft.privacy.engine import KEY, LEDGER
from fedpeft.privacy.ledger import POPULATION
from fedpeft.simulate import main as simulate
from tests.fleet import NAMES, apart, havoc

DP_SGD = "dp_sgd(noise_multiplier=1, test_noise=True)"


def charges(folder):
    return [json.loads(line)["charges"] for line in (folder / LEDGER).read_text().splitlines()[1:]]


def homes(made):
    """Return the clients' own folders, by name."""
    [run] = [folder for folder in (made.folder / "state").iterdir() if folder.name != "ledgers"]
    return {name: run / name for name in NAMES}


def simulated(made):
    assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
    return charges(made.folder / "simulated")


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["local_dp", "user_dp"])
def test_real_clients_end_with_the_private_adapter_of_the_simulation(fleet, mechanism):
    # SGD: AdamW turns rounding into steps where a noisy start leaves gradients near zero. The two executors of one
    # simulation differ by 4e-6 after two such rounds of local_dp with AdamW, by 3e-14 with SGD.
    made = fleet(head="zero", optimizer="sgd", privacy=f"{mechanism}(noise_multiplier=1, test_noise=True)")
    server = made.serve()
    clients = [made.join(name) for name in NAMES]
    assert [made.end(p) for p in (server, *clients)] == [0, 0, 0, 0], made.logs()
    planned = simulated(made)
    assert apart(made) < 1e-7  # noise as large as an update makes more of rounding: 1.2e-8 on some processors
    assert charges(made.folder / "run") == planned
    summary = json.loads((made.folder / "run" / "summary.json").read_text())
    assert summary["epsilon"] > 0
    assert summary["privacy"]["unit"] == "client"
    if mechanism == "user_dp":
        assert [charge[0][0] for charge in planned] == [POPULATION] * 2
        assert "the server is trusted" in made.log("a")
        return
    for k, name in enumerate(NAMES):
        own = [[[0, *rest] for client, *rest in charge if client == k] for charge in planned]
        assert charges(homes(made)[name]) == own
        assert "privacy: epsilon" in made.log(name)


@pytest.mark.slow
def test_killed_private_clients_and_servers_are_charged_at_least_what_was_released(fleet):
    made = fleet(head="zero", privacy=DP_SGD, rounds=8, measure="validation(every=8)")
    server = made.serve("--quorum", "1")  # a round waits for all, however long one takes to begin again
    clients = {name: made.join(name) for name in NAMES}
    made.wait(lambda: len(made.rounds()) >= 2, server)
    clients["b"].kill()
    made.wait(lambda: any(e["client"] == "b" for e in made.events("disconnected")), server)
    server.kill()
    server.wait()
    assert len(made.rounds()) < 8, "the run was over before it could be interrupted"
    clients["b"] = made.join("b")
    server = made.serve()
    assert [made.end(p) for p in (server, *clients.values())] == [0, 0, 0, 0], made.logs()
    planned = simulated(made)
    assert apart(made) < 1e-8, "a replay has the noise of the first time"
    book = {k: sum(c[3] for charge in charges(made.folder / "run") for c in charge if c[0] == k) for k in range(3)}
    lines = [json.loads(line) for line in (made.folder / "run" / "clients.jsonl").read_text().splitlines()]
    for k, name in enumerate(NAMES):
        home = homes(made)[name]
        released = sum(line["steps"] for line in lines if line["client"] == k)
        own = sum(count for [[_, _, _, count]] in charges(home))
        assert released == sum(c[3] for charge in planned for c in charge if c[0] == k)
        assert released <= own <= book[k]
        kinds = {tuple(c[1:3]) for charge in planned for c in charge if c[0] == k}
        assert {tuple(c[1:3]) for [c] in charges(home)} == kinds
        assert {(home / file).stat().st_mode & 0o077 for file in (KEY, LEDGER)} == {0}
    assert {(made.folder / "run" / n).stat().st_mode & 0o077 for n in ("clients.jsonl", "serve.jsonl", KEY)} == {0}


@pytest.mark.long
def test_chaos_with_privacy(fleet):
    """Kills, stops and cuts at random moments: both books hold what was applied, once, and at most a round more."""
    made = fleet(
        head="zero", optimizer="sgd(schedule=constant)", privacy=DP_SGD, rounds=4000, measure="validation(every=4000)"
    )
    finished = havoc(made)
    words = ["--output", str(made.folder / "simulated"), "--rounds", str(finished)]
    assert simulate([str(made.folder / "run.toml"), *words]) == 0
    assert apart(made) < 1e-6, "a replay has the noise of the first time"
    lines = [json.loads(line) for line in (made.folder / "run" / "clients.jsonl").read_text().splitlines()]
    assert len({(line["round"], line["client"]) for line in lines}) == len(lines) == 3 * finished
    for k, name in enumerate(NAMES):
        steps = [line["steps"] for line in lines if line["client"] == k]
        own = sum(count for [[_, _, _, count]] in charges(homes(made)[name]))
        book = sum(c[3] for charge in charges(made.folder / "run") for c in charge if c[0] == k)
        print(f"{name}: {sum(steps)} releases applied, {own} in its ledger, {book} in the server's")
        assert sum(steps) <= own <= book <= sum(steps) + steps[-1]

"""A server and its clients as users run them: processes, certificates, loopback."""

from __future__ import annotations

import json
import re
import signal
import time

import pytest

from fedpeft.commands.transcript import main as compare
from fedpeft.errors import RunError
from fedpeft.rounds.progress import Checkpoints
from fedpeft.serve import main as serve
from fedpeft.simulate import main as simulate
from tests.fleet import NAMES, Wire, apart, distance, havoc
from tests.refusals import has_error

BESIDE = 12_000
"""Most bytes of a client's two connections, its calls and its settings: see docs/deploy-limits.md."""


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
    assert real.keys() == simulated.keys()
    for key in ("accuracy", "loss", "uplink_bytes", "downlink_bytes", "prepare_bytes", "rejected"):
        assert real[key] == pytest.approx(simulated[key], rel=1e-6), key
    assert real["uplink_bytes"] < real["wire_received_bytes"] < 1.02 * real["uplink_bytes"] + 2000
    for reported, carried in ((real["wire_received_bytes"], wire.up), (real["wire_sent_bytes"], wire.down)):
        print(f"reported {reported}, carried {carried}, beside {carried - reported}")
        assert reported < carried < 1.003 * reported + 3 * BESIDE


@pytest.mark.slow
def test_kills_of_server_and_client_lose_nothing_and_apply_nothing_twice(fleet):
    """The adapter is that of the simulation, though the server and a client were killed in the middle of rounds.

    The codec drops most of each update, and clients remember what was dropped: that survives, too.
    """
    made = fleet(rounds=8, measure="validation(every=8)", codec="ef14 | topk(fraction=0.1)")
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
    authority = ["--certificate", str(made.folder / "certs" / "ca.pem")]
    [one], [other] = ([*(made.folder / "state").glob(f"*/{name}/transcript.jsonl")] for name in "ab")
    for its_own in (str(other), str(made.folder / "run" / "rounds.signed.jsonl")):
        assert compare([str(one), its_own, *authority]) == 0, "one chain, though the server was killed"


@pytest.mark.slow
def test_a_client_is_one_process(fleet):
    """A second one, of the same state, is refused before it reads key or ledger; after a kill the place is free."""
    made = fleet(privacy="local_dp(noise_multiplier=1)", head="zero", dtype="fp32", rounds=1)
    made.serve()
    first = made.join("a")
    made.wait(lambda: "releases so far" in made.log("a"), first)
    [home] = (made.folder / "state").glob("*/a")
    before = {file.name: file.read_bytes() for file in home.iterdir() if file.is_file()}
    second = made.join("a")
    assert made.end(second) == 2
    assert has_error(made.log("a"), "FP5037")
    assert made.log("a").count("releases so far") == 1
    assert first.poll() is None
    assert {file.name: file.read_bytes() for file in home.iterdir() if file.is_file()} == before
    first.kill()
    first.wait()
    third = made.join("a")
    made.wait(lambda: made.log("a").count("releases so far") == 2, third)


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
    assert bool(Checkpoints(made.folder / "run" / "checkpoint").load().residual.total) == ("strategy" in settings)
    counts = (json.loads((made.folder / f / "summary.json").read_text()) for f in ("run", "simulated"))
    assert len({c["downlink_bytes"] for c in counts}) == 1


@pytest.mark.slow
def test_a_late_joiner_takes_part_and_own_rows_are_evaluated(fleet):
    """A round is held up by a client that is suspended until the newcomer is there: it can't come too late."""
    made = fleet(rounds=12, measure="validation(every=1)")
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
    said = [re.findall(r"evaluate round 12: (\d+) examples, loss ([\d.]+)", made.log(name))[-1] for name in NAMES]
    total = sum(int(rows) for rows, _ in said)
    assert summary["loss"] == pytest.approx(sum(int(n) * float(loss) for n, loss in said) / total, abs=1e-3)


@pytest.mark.slow
def test_an_asynchronous_run_goes_on_without_a_slow_client_and_takes_its_stale_update(fleet):
    """Client c is suspended for some rounds; then b is, so that only c can complete the buffer of two."""
    made = fleet(strategy="fedbuff(buffer=2)", rounds=20, measure="validation(every=20)")

    def of(name):
        file = made.folder / "run" / "clients.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line["client"] == NAMES.index(name)]

    server = made.serve()
    clients = {name: made.join(name) for name in NAMES}
    made.wait(lambda: of("c"), server)
    clients["c"].send_signal(signal.SIGSTOP)
    before = len(made.rounds())
    made.wait(lambda: len(made.rounds()) >= before + 3, server)
    clients["b"].send_signal(signal.SIGSTOP)
    known = len(of("c"))
    clients["c"].send_signal(signal.SIGCONT)
    made.wait(lambda: len(of("c")) > known, server)
    clients["b"].send_signal(signal.SIGCONT)
    assert [made.end(p) for p in (server, *clients.values())] == [0, 0, 0, 0], made.logs()
    assert of("c")[known]["staleness"] >= 2
    lines = [line for name in NAMES for line in of(name)]
    assert len({(line["round"], line["client"]) for line in lines}) == len(lines) == 40


@pytest.mark.long
def test_a_minute_of_silence_on_the_network_loses_nothing(fleet):
    """Nobody is told that the network is gone: both sides notice by themselves, and find each other again."""
    made = fleet(rounds=8, measure="validation(every=8)")
    server = made.serve("--quorum", "1")
    wire = Wire(made.port)
    clients = [made.join(name, port=wire.port) for name in NAMES]
    made.wait(lambda: len(made.rounds()) >= 3, server)
    wire.silent.set()
    time.sleep(60)
    assert {e["client"] for e in made.events("disconnected")} == set(NAMES)
    assert len(made.rounds()) < 9, "the run was over before it could be interrupted"
    wire.silent.clear()
    assert [made.end(p) for p in (server, *clients)] == [0, 0, 0, 0], made.logs()
    assert simulate([str(made.folder / "run.toml"), "--output", str(made.folder / "simulated")]) == 0
    assert distance(made.folder / "run", made.folder / "simulated") < 1e-6
    lines = [json.loads(line) for line in (made.folder / "run" / "clients.jsonl").read_text().splitlines()]
    assert len({(line["round"], line["client"]) for line in lines}) == len(lines) == 24


@pytest.mark.long
@pytest.mark.parametrize("settings", [{"codec": "ef21 | topk(fraction=0.1)"}, {"privacy": "secure_sum"}], ids=str)
def test_chaos(fleet, settings):
    """The run ends with the adapter of the simulation; no client's update of a round is applied twice.

    Clients remember what their codec has dropped, and the server keeps copies of these memories; or updates are added
    up under masks, in five steps a round, and nobody may be missing.
    """
    made = fleet(
        rounds=4000,
        measure="validation(every=4000)",
        optimizer="adamw(warmup=8, schedule=constant)",
        **settings,
    )
    finished = havoc(made)
    # What was trained so far must be what a simulation of as many rounds trains.
    words = ["--output", str(made.folder / "simulated"), "--rounds", str(finished)]
    assert simulate([str(made.folder / "run.toml"), *words]) == 0
    assert apart(made) < 1e-6
    lines = [json.loads(line) for line in (made.folder / "run" / "clients.jsonl").read_text().splitlines()]
    assert len({(line["round"], line["client"]) for line in lines}) == len(lines) == 3 * finished


@pytest.mark.fast
def test_a_server_keeps_the_paths_that_it_was_given_absolutely(tmp_path, monkeypatch):
    """A resume may be typed in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "rows.csv").write_text("text,label\na,x\nb,y\n")
    seen = []

    def federation(config, folder, observer, options, *_):
        seen.extend((config, options))
        raise RunError("enough")

    monkeypatch.setattr("fedpeft.deployment.server.serving.Federation", federation)
    (tmp_path / "own.jinja").write_text("{{ instruction }}")
    words = ["--clients", "2", "--dataset", "file:rows.csv", "--model", "./base", "--insecure", "--listen",
             "127.0.0.1:0", "--output", "run"]  # fmt: skip
    assert serve([*words, "--task", "instruction", "--template", "own.jinja", "--eval-data", "rows.csv"]) == 2
    assert serve([*words, "--eval-data", "dataset"]) == 2
    config, options, of_data, _ = seen
    assert config.model == of_data.model == str(tmp_path / "base")
    assert of_data.dataset == f"file:{tmp_path / 'rows.csv'}"
    template = str(tmp_path / "own.jinja")
    assert config.dataset == f"clients(task='instruction', template={template!r})", "whose rows it is made of"
    assert options.template == template
    assert (options.eval_data, options.certs) == (str(tmp_path / "rows.csv"), str(tmp_path / "certs"))

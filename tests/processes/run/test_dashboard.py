"""The page of a run: what it tells, to whom, and that nothing can be done by it."""

from __future__ import annotations

import asyncio
import io
import json
import math
import socket
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

import fedpeft
from fedpeft.errors import RunError
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.dashboard.live import CLIENTS_SHOWN, LiveState
from fedpeft.reporting.dashboard.server import (
    FILES,
    LOOK_SECONDS,
    _stream_changes,
    parse_port,
    serve_dashboard,
    show_dashboard,
)
from fedpeft.reporting.observer import RoundResult, compute_perplexity, get_main_metric
from fedpeft.reporting.plots import plot_rounds
from fedpeft.reporting.records import Records
from fedpeft.simulate import simulate
from tests.browser import WIDER, browser, in_a_browser
from tests.refusals import refuses

CUT = """[...document.querySelectorAll(".tiles b")].filter(
    e => e.getBoundingClientRect().right > e.parentElement.getBoundingClientRect().right).map(e => e.id)"""
"""Numbers that stick out of their tiles."""

PAGE = Path(fedpeft.__file__).parent / "reporting" / "dashboard"


def result(number, **other):
    given = {"clients": 2, "rejected": 0, "train_loss": 1.0, "loss": 0.9, "accuracy": 0.5, "uplink_bytes": 10,
             "downlink_bytes": 20, "update_norm": 1.0, "training_seconds": 2.0, "seconds": 4.0}  # fmt: skip
    return RoundResult(round=number, **given | other)


def client(number, round_number, rejected=None):
    return {"round": round_number, "client": number, "rejected": rejected}


@pytest.fixture
def live(tmp_path):
    live = LiveState(tmp_path, "a <b>run</b>")
    live.watch(clients=4, private=False)
    live.begin_rounds(4)
    return live


def fetched(address, path, **headers):
    request = urllib.request.Request(address + path, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode(), answer.headers


@pytest.mark.fast
def test_it_tells_rounds_clients_and_the_time_that_is_left(live, tmp_path):
    records = Records(tmp_path)
    records.append("clients.jsonl", client(0, 1), client(1, 1, "too large"))
    live.round_done(result(1))
    records.append("clients.jsonl", client(2, 2))
    live.round_done(result(2, loss=None, seconds=6.0))
    state = live.take_snapshot()
    assert [r["round"] for r in state["rounds"]] == [1, 2]
    assert state["rounds"][1]["loss"] is None
    assert state["clients"] == ["before", "rejected", "now", "never"]
    assert state["left"] == 5.0 * 2
    assert state["epsilon"] is None


@pytest.mark.fast
@pytest.mark.parametrize(
    ("metric", "name", "value"),
    [("skill", "skill", 0.5), ("label_accuracy", "label accuracy", 0.5), ("perplexity", "perplexity", math.exp(0.9))],
)
def test_it_is_judged_by_what_its_task_is_judged_by(live, metric, name, value):
    told = io.StringIO()
    observer = ConsoleObserver(Console(file=told, width=200), live=live)
    observer.metric = metric
    observer.round_done(result(1))
    state = live.take_snapshot()
    assert state["metric"] == name
    assert state["rounds"][-1]["judged"] == pytest.approx(value)
    assert f", {name} {value:.3f}  " in told.getvalue()
    assert name == "accuracy" or ", accuracy" not in told.getvalue()


@pytest.mark.fast
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e6, None])
def test_a_perplexity_beyond_all_numbers_is_none(loss):
    assert get_main_metric("perplexity", loss, 0.1) == ("perplexity", None)


@pytest.mark.fast
@pytest.mark.parametrize(("loss", "value"), [(0.5, math.exp(0.5)), (1e6, math.exp(700)), (float("inf"), math.exp(700))])
def test_a_diverged_language_model_has_a_perplexity_and_a_plot(tmp_path, loss, value):
    assert compute_perplexity(loss) == value
    rounds = [{"round": k, "loss": loss, "train_loss": loss, "accuracy": 0.1} for k in range(3)]
    plot_rounds(tmp_path / "rounds.svg", rounds, {"metric": "perplexity", "loss": loss, "perplexity": value})
    assert (tmp_path / "rounds.svg").stat().st_size


@pytest.mark.fast
def test_a_run_that_goes_on_shows_the_rounds_of_before(tmp_path):
    Records(tmp_path).append("rounds.jsonl", asdict(result(1)), asdict(result(2)))
    live = LiveState(tmp_path, "run")
    live.begin_rounds(4)
    live.round_done(result(2))  # repeated after a kill
    assert [r["round"] for r in live.take_snapshot()["rounds"]] == [1, 2]


@pytest.mark.fast
def test_under_privacy_nobody_sees_who_took_part(tmp_path):
    Records(tmp_path).append("clients.jsonl", client(0, 1))
    live = LiveState(tmp_path, "run")
    live.begin_rounds(2)
    assert live.take_snapshot()["clients"] is None  # before it is known, too
    live.watch(clients=4, private=True, epsilon=lambda: 1.5)
    live.round_done(result(1))
    state = live.take_snapshot()
    assert state["clients"] is None
    assert state["epsilon"] == 1.5


@pytest.mark.fast
def test_an_infinite_epsilon_and_many_clients_are_still_json(tmp_path):
    live = LiveState(tmp_path, "run")
    live.watch(clients=10 * CLIENTS_SHOWN, private=False, epsilon=lambda: float("inf"))
    live.begin_rounds(2)
    live.round_done(result(1, loss=float("nan")))
    state = json.loads(live.to_json())
    assert state["epsilon"] is None
    assert len(state["clients"]) == CLIENTS_SHOWN
    assert state["population"] == 10 * CLIENTS_SHOWN


@pytest.mark.medium
def test_the_page_is_served_to_this_machine_and_to_be_read_only(live):
    live.say("[bold]data[/]    some rows")
    with serve_dashboard(live, 0) as address:
        assert address.startswith("http://127.0.0.1:")
        for path, (name, kind) in FILES.items():
            text, headers = fetched(address, path)
            assert text == (PAGE / name).read_text(encoding="utf-8")
            assert headers["Content-Type"].startswith(kind)
            assert "default-src 'none'" in headers["Content-Security-Policy"]
        state = json.loads(fetched(address, "/state")[0])
        assert state["title"] == "a <b>run</b>"
        assert state["log"][0].endswith("data    some rows")
        for method in ("POST", "PUT", "DELETE"):
            with pytest.raises(urllib.error.HTTPError, match="405"):
                urllib.request.urlopen(urllib.request.Request(address + "/state", method=method), timeout=20)
        for path in ("/../config.toml", "/config.toml", "/%2e%2e/config.toml"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                fetched(address, path)
        with pytest.raises(urllib.error.HTTPError, match="400"):  # a name that somebody else lets lead here
            fetched(address, "/state", Host="evil.example")


@pytest.mark.medium
def test_events_tell_each_change_and_the_end(live):
    with serve_dashboard(live, 0) as address, urllib.request.urlopen(address + "/events", timeout=20) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        first = json.loads(stream.readline().decode().removeprefix("data: "))
        assert first["rounds"] == []
        assert stream.readline() == b"\n"
        live.round_done(result(1))
        second = json.loads(stream.readline().decode().removeprefix("data: "))
        assert [r["round"] for r in second["rounds"]] == [1]
        stream.readline()
        live.end("finished")
        assert json.loads(stream.readline().decode().removeprefix("data: "))["ended"] == "finished"
        stream.readline()
        assert stream.read() == b""


@pytest.mark.fast
def test_who_looks_while_the_run_ends_is_told_how(live):
    async def watch():
        changes = _stream_changes(live)
        await anext(changes)
        live.ended = "finished"  # as far as `end` has come when somebody looks
        asyncio.get_running_loop().call_later(2 * LOOK_SECONDS, live.end, "finished")
        return [json.loads(told.removeprefix("data: "))["ended"] async for told in changes]

    assert asyncio.run(watch()) == ["finished"]


@pytest.mark.fast
def test_the_page_makes_no_markup_of_what_a_run_says():
    script = (PAGE / "app.js").read_text(encoding="utf-8")
    assert "innerHTML" not in script
    assert "http" not in script.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.fast
@pytest.mark.parametrize("given", ["x", "-1", "70000", "0.0.0.0:80", "127.0.0.1:8480"])
def test_what_is_no_port_is_refused(given):
    with refuses("FP1354"):
        parse_port(given)


@pytest.mark.medium
def test_a_port_that_is_taken_is_one_sentence(live):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with refuses("FP5165", f"127.0.0.1:{port}"), serve_dashboard(live, port):
            pass


@pytest.mark.fast
def test_without_a_port_there_is_no_page(tmp_path):
    with show_dashboard("", tmp_path, Console(quiet=True)) as live:
        assert live is None


@pytest.mark.medium
def test_a_run_that_fails_says_so(tmp_path):
    kept = []

    def fail():
        with show_dashboard("0", tmp_path, Console(quiet=True)) as live:
            kept.append(live)
            raise RunError("the disk is full")

    with pytest.raises(RunError, match="the disk is full"):
        fail()
    assert kept[0].ended == "failed: FP5000 the disk is full"


@pytest.mark.medium
def test_a_simulation_tells_its_page(tmp_path, monkeypatch):
    kept = []
    before = LiveState.__init__

    def remembered(self, *given):
        before(self, *given)
        kept.append(self)

    monkeypatch.setattr(LiveState, "__init__", remembered)
    config = fedpeft.RunConfig(
        dataset="tiny(rows=60, test_rows=20)", clients=3, cohort=2, rounds=2, workers=1, partition="iid",
        peft="lora(rank=2, layers=1)", local_work="steps(1)", dtype="fp32",
    )  # fmt: skip
    simulate(config, tmp_path / "run", False, Console(quiet=True), dashboard="0")
    state = kept[0].take_snapshot()
    assert [r["round"] for r in state["rounds"]][-1] == state["total"] == 2
    assert sorted(set(state["clients"])) in (["before", "now"], ["before", "never", "now"], ["never", "now"])
    assert state["ended"] == "finished"
    assert any("model" in line for line in state["log"])


@pytest.mark.slow
@in_a_browser
def test_a_browser_shows_the_run(tmp_path):
    title = "a <b>run</b>/of-a-long-name(rank=8)-without-a-space-in-it-as-folders-of-studies-have-them-seed0"
    live = LiveState(tmp_path, title)
    live.watch(clients=4, private=False)
    live.judge("label_accuracy")
    live.begin_rounds(4)
    for number in (1, 2):
        live.round_done(result(number, uplink_bytes=999_900_000_000, downlink_bytes=999_900_000_000, seconds=36_000.0))
    live.say("round 2 is done " + "/without/a/space" * 20)
    with serve_dashboard(live, 0) as address, browser(tmp_path / "profile") as page:
        for width in (320, 390, 1440):
            page.open(address, width)
            page.until("document.getElementById('round').textContent === '2 / 4'")
            assert page.run("innerWidth") == width
            assert page.run("document.documentElement.scrollWidth") <= width
            assert page.run(WIDER) == []
            assert page.run("document.getElementById('title').textContent") == title
            assert page.run("document.getElementById('metric').textContent") == "validation label accuracy"
            assert page.run("document.getElementById('metrics').textContent") == "Label accuracy"
            assert page.run("document.getElementById('judged').textContent") == "0.500"
            assert page.run("document.querySelectorAll('circle').length") == 6  # losses of both rows, accuracy
            assert page.run("document.querySelectorAll('.never').length") == 5  # four clients, and the legend
            assert "round 2 is done" in page.run("document.getElementById('log').textContent")
            assert page.run(CUT) == []


@pytest.mark.fast
def test_an_observer_without_a_page_is_as_before():
    observer = ConsoleObserver(Console(quiet=True))
    observer.phase("work", 2)
    observer.advance()
    assert observer.live is None

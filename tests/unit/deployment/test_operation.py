"""Metrics and health checks of a server, over their real ports."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedpeft.deployment.addresses import is_loopback, parse_address
from fedpeft.deployment.identity.authentication import Doorkeeper
from fedpeft.deployment.identity.members import Roster
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server.event_log import Events
from fedpeft.deployment.server.federation import Federation
from fedpeft.deployment.server.grid import StoppedError
from fedpeft.deployment.server.monitoring import Operation
from fedpeft.deployment.server.serving import log_end, serve
from fedpeft.deployment.wire.session import Session
from fedpeft.errors import RunError
from fedpeft.reporting.console import ServeObserver
from fedpeft.reporting.summary import _list_result_lines
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses


def test_who_took_part_is_readable_by_the_run_s_owner_alone(tmp_path, monkeypatch):
    """As the server's log is; without any --privacy, too."""

    def one_round(_, records, __):
        records.append("clients.jsonl", {"round": 1, "client": 0})
        raise StoppedError

    monkeypatch.setattr("fedpeft.deployment.server.serving._run", one_round)
    config = RunConfig(dataset="tiny", model="tiny", clients=2, cohort="all", rounds=1, dtype="fp32", workers=1)
    with pytest.raises(StoppedError):
        serve(config, ServeOptions(listen="127.0.0.1:0", insecure=True), tmp_path / "run", False, Console(quiet=True))
    assert {(tmp_path / "run" / n).stat().st_mode & 0o077 for n in ("clients.jsonl", "serve.jsonl")} == {0}


@pytest.mark.parametrize(
    ("address", "host"), [("0.0.0.0:1", "0.0.0.0"), ("[::1]:1", "::1"), ("[fe80::1%eth0]:1", "fe80::1%eth0"),
                          ("[fe80::1%br-3f2.1]:1", "fe80::1%br-3f2.1"), ("fe80::1%eth0:1", "fe80::1%eth0"),
                          ("localhost:1", "localhost"), ("fl_server.example.org.:1", "fl_server.example.org.")]
)  # fmt: skip
def test_names_and_addresses_of_both_kinds_are_hosts(address, host):
    assert parse_address(address, "listen") == (host, 1)


def test_only_a_client_can_come_back(tmp_path):
    options = ServeOptions(listen="127.0.0.1:0", insecure=True, readmit="edge-1")
    with refuses("FP5076", "edge-1", "none"):
        serve(RunConfig(dataset="tiny", clients=2), options, tmp_path / "run", False, Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_whom_readmit_takes_back_is_told_and_who_needs_it_not(tmp_path):
    """One that was killed was not dropped: the command goes on, and says so."""
    roster = Roster(tmp_path / "roster.json", 2)
    for name in ("edge-1", "edge-2"):
        roster.enter(name, 0)
    roster.drop(roster.find("edge-1"), "it lied")
    said = []
    observer = ServeObserver(Console(quiet=True))
    observer.say = said.append
    config = RunConfig(dataset="tiny", clients=2, cohort="all", workers=1, dtype="fp32")
    events = Events(tmp_path / "serve.jsonl", observer.event)
    federation = Federation(
        config, tmp_path, observer, ServeOptions(readmit="edge-1, edge-2"), Doorkeeper(None), events
    )
    federation.close()
    assert [line for line in said if "edge-2" in line] == [
        "[bold]note[/]    edge-2 is not dropped, and may come back at any time"
    ]
    logged = [json.loads(line) for line in (tmp_path / "serve.jsonl").read_text().splitlines()]
    assert [(line["event"], line["client"]) for line in logged] == [("readmitted", "edge-1")]
    assert not any(member.dropped for member in federation.roster.members)


def test_who_is_waited_for_is_said_in_full_and_bytes_are_kept(tmp_path):
    """After a resume a part of the cohort is enough: those asked for are not called fewer than they are."""
    said = []
    observer = ServeObserver(Console(quiet=True))
    observer.phase = lambda name, total: (said.append(name), federation.stopping.set())
    roster = Roster(tmp_path / "roster.json", 2)
    for name in ("edge-1", "edge-2"):
        roster.enter(name, 0)
    roster.start()
    roster.count(7, 8)
    config = RunConfig(dataset="tiny", clients=2, cohort="all", workers=1, dtype="fp32")
    events = Events(tmp_path / "serve.jsonl", observer.event)
    federation = Federation(config, tmp_path, observer, ServeOptions(), Doorkeeper(None), events)
    with pytest.raises(StoppedError):
        federation.wait_for_present()
    assert said == ["waiting for clients: 0 of 2 are connected; 1 needed to continue"]
    session = federation.gateway._sessions.setdefault("edge-1", Session(federation.roster.find("edge-1")))
    session.received_bytes += 10
    federation.close()
    again = Roster(tmp_path / "roster.json", 2)
    assert (again.received_bytes, again.sent_bytes) == (17, 8)


def test_who_does_not_come_back_after_a_restart_is_waited_for_once(tmp_path):
    roster = Roster(tmp_path / "roster.json", 2)
    for name in ("edge-1", "edge-2"):
        roster.enter(name, 0)
    roster.start()
    config = RunConfig(dataset="tiny", clients=2, cohort="all", workers=1, dtype="fp32")
    observer = ServeObserver(Console(quiet=True))
    events = Events(tmp_path / "serve.jsonl", observer.event)
    federation = Federation(config, tmp_path, observer, ServeOptions(patience=0.5), Doorkeeper(None), events)
    federation.gateway._sessions["edge-1"] = Session(federation.roster.find("edge-1"), connected=1)
    federation.roster.since, seconds = time.monotonic(), []  # as of `Gateway.start`
    for _ in range(2):
        started = time.monotonic()
        assert federation.wait_for_present() == [0]
        seconds.append(time.monotonic() - started)
    federation.close()
    assert seconds[0] >= 0.5 > 0.3 > seconds[1]


@pytest.mark.parametrize(
    ("error", "event", "level"),
    [(None, "finished", "info"), (StoppedError(), "stopped", "info"), (RunError("no disk"), "failed", "error")],
)
def test_the_log_says_how_a_run_ends(error, event, level, tmp_path):
    events = Events(tmp_path / "serve.jsonl", lambda *_: None)

    def end():
        with log_end(events):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            end()
    else:
        end()
    [line] = map(json.loads, (tmp_path / "serve.jsonl").read_text().splitlines())
    assert (line["event"], line["level"]) == (event, level)
    assert line.get("reason") == ("FP5000 no disk" if level == "error" else None)


def test_an_address_of_another_form_is_one_sentence():
    options = ServeOptions(metrics="9470")
    with refuses("FP1122"), Operation(None, None, options):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("0.0.0.0:1", False), ("10.0.0.1:1", False)],
)
def test_what_counts_as_this_machine(address, expected):
    assert is_loopback(address) is expected


def test_what_a_server_without_rows_is_advised_is_legal_under_privacy():
    """It was told to take --held-out alone, which every budget and every sum refuses."""
    [(_, said)] = _list_result_lines(SimpleNamespace(quality=SimpleNamespace(accuracy=float("nan"), metric="accuracy")))
    assert said.endswith("a server takes --eval-data FILE or, without --privacy, --held-out 0.2")

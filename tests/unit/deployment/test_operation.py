"""Metrics and health checks of a server, over their real ports."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from wsgiref.simple_server import make_server

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console

from fedpeft.config import RunConfig
from fedpeft.deployment.authentication import Doorkeeper
from fedpeft.deployment.event_log import Events
from fedpeft.deployment.federation import Federation
from fedpeft.deployment.grid import StoppedError
from fedpeft.deployment.members import Member, Roster
from fedpeft.deployment.monitoring import (
    MONITORS_AT_ONCE,
    SERVICE,
    MetricsHandler,
    MetricsServer,
    Operation,
    host_and_port,
    is_loopback,
)
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.session import Session
from fedpeft.errors import RunError
from fedpeft.run.console import ServeObserver
from fedpeft.run.observer import RoundResult
from fedpeft.run.summary import _reached
from fedpeft.serve import end_told, serve
from tests.refusals import refuses


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_who_took_part_is_readable_by_the_run_s_owner_alone(tmp_path, monkeypatch):
    """As the server's log is; without any --privacy, too."""

    def one_round(_, records, __):
        records.append("clients.jsonl", {"round": 1, "client": 0})
        raise StoppedError

    monkeypatch.setattr("fedpeft.serve._run", one_round)
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
    assert host_and_port(address, "listen") == (host, 1)


def test_metrics_and_health_are_served(tmp_path, monkeypatch):
    pytest.importorskip("prometheus_client", reason="needs fedpeft[serve]")
    metrics, health = free_port(), free_port()
    options = ServeOptions(metrics=f"127.0.0.1:{metrics}", health=f"127.0.0.1:{health}", insecure=True)
    config = RunConfig(dataset="tiny", clients=2, cohort="all", rounds=7, dtype="fp32", workers=1,
                       privacy="dp_sgd(noise_multiplier=1)", head="zero")  # fmt: skip
    observer = ServeObserver(Console(quiet=True))
    events = Events(tmp_path / "serve.jsonl", observer.event)
    federation = Federation(config, tmp_path, observer, options, Doorkeeper(None), events)
    observer.watch(federation)
    try:
        with Operation(federation, observer, options):
            monkeypatch.setattr(federation.protection, "epsilons", lambda: (1.5, 1.0))
            observer.metric = "label_accuracy"
            observer.round_done(RoundResult(3, 2, 0, 0.5, 0.25, float("nan"), 10, 20, 1.0, 1.5, 2.5))
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as page:
                text = page.read().decode()
            for line in ("fedpeft_clients_connected 0.0", "fedpeft_rounds 7.0", "fedpeft_refused_total 0.0",
                         "fedpeft_loss 0.25", "fedpeft_round_seconds 2.5", "process_resident_memory_bytes",
                         "fedpeft_epsilon 1.5",
                         "# HELP fedpeft_accuracy label accuracy of the last round"):  # fmt: skip
                assert line in text
            panels = (Path(__file__).parents[2] / "docs" / "grafana.json").read_text(encoding="utf-8")
            shown = set(re.findall(r"(?:fedpeft|process)_\w+", panels))
            assert len(shown) > 10
            assert [name for name in shown if f"\n{name} " not in text] == []
            line = json.loads((tmp_path / "serve.jsonl").read_text().splitlines()[-1])
            assert (line["level"], line["event"], line["round"], line["loss"]) == ("info", "round", 3, 0.25)
            assert line["accuracy"] is None
            with grpc.insecure_channel(f"127.0.0.1:{health}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        federation.close()


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
        federation.present()
    assert said == ["waiting for clients: 0 of 2 are connected; it takes 1 to go on"]
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
        assert federation.present() == [0]
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
        with end_told(events):
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


def test_silent_callers_take_a_few_threads_and_leave_again(monkeypatch):
    """Sixteen at once; the others are closed at once, and the sixteen after a moment."""
    monkeypatch.setattr(MetricsHandler, "timeout", 0.5)
    server = make_server("127.0.0.1", 0, lambda *_: [], MetricsServer, MetricsHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    before = threading.active_count() + 1
    thread.start()
    try:
        crowd = [socket.create_connection(server.server_address, timeout=20) for _ in range(MONITORS_AT_ONCE + 4)]
        assert all(caller.recv(1) == b"" for caller in crowd[MONITORS_AT_ONCE:])
        assert threading.active_count() <= before + MONITORS_AT_ONCE
        assert all(caller.recv(1) == b"" for caller in crowd)
    finally:
        server.shutdown()
        server.server_close()
        for caller in crowd:
            caller.close()


def test_metrics_for_everybody_are_warned_of_and_name_no_client():
    said = []
    federation = SimpleNamespace(
        gateway=SimpleNamespace(
            sessions=lambda: [
                SimpleNamespace(member=Member("clinic-7"), received_bytes=5, sent_bytes=6, connected=1, task="")
            ],
            admission=SimpleNamespace(refused=0),
        ),
        config=RunConfig(),
        secret_cohort=False,
    )
    observer = SimpleNamespace(say=said.append, last=None, epsilon=None)
    with Operation(federation, observer, ServeOptions(metrics=f"0.0.0.0:{free_port()}")) as operation:  # type: ignore[arg-type]
        text = str([(f.name, f.samples) for f in operation.collect()])
    assert "--metrics" in said[0]
    assert "clinic-7" not in text
    assert "fedpeft_received_bytes" in text
    said.clear()
    with Operation(federation, observer, ServeOptions(metrics=f"127.0.0.1:{free_port()}")):  # type: ignore[arg-type]
        assert said == []


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
    [(_, said)] = _reached(SimpleNamespace(quality=SimpleNamespace(accuracy=float("nan"), metric="accuracy")))
    assert said.endswith("a server takes --eval-data FILE or, without --privacy, --held-out 0.2")

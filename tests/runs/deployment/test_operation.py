"""Metrics and health checks of a server, over their real ports."""

from __future__ import annotations

import json
import re
import socket
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from wsgiref.simple_server import make_server

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console

from fedpeft.deployment.identity.authentication import Doorkeeper
from fedpeft.deployment.identity.members import Member
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server.event_log import Events
from fedpeft.deployment.server.federation import Federation
from fedpeft.deployment.server.monitoring import (
    MONITORS_AT_ONCE,
    SERVICE,
    MetricsHandler,
    MetricsServer,
    Operation,
)
from fedpeft.reporting.console import ServeObserver
from fedpeft.reporting.observer import RoundResult
from fedpeft.wiring.config import RunConfig


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_metrics_and_health_are_served(tmp_path, monkeypatch):
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
            panels = (Path(__file__).parents[3] / "docs" / "grafana.json").read_text(encoding="utf-8")
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
            list_sessions=lambda: [
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

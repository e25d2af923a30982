"""Connections that say nothing: they fill up their own places for the time of a handshake, and no file's."""

from __future__ import annotations

import configparser
import resource
import signal
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fedpeft.deployment.descriptors import OF_A_CLIENT, SPARE, STRANGERS, connections
from tests.refusals import refuses

ROOT = Path(__file__).parent.parent.parent
CROWD = 1100
"""More than the 1,024 descriptors that most systems give a process."""


@contextmanager
def soft_limit(limit):
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < limit:
        pytest.skip(f"this machine allows a process {hard} open files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@pytest.mark.slow
@pytest.mark.parametrize("ulimit", ["-Sn 1024", "-n 1024"], ids=["can be raised", "the most there is"])
def test_a_crowd_that_shows_no_certificate_ends_no_server(fleet, ulimit):
    """They stay as long as they are let; rounds go on, records are written, and a newcomer is served.

    The client is suspended while the crowd and the newcomer come: there are rounds left for them.
    """
    made = fleet(clients=2, rounds=16, measure="validation(every=16)")
    made.ulimit = ulimit
    server = made.serve("--wait-for", "1")
    first = made.join("a")
    made.wait(lambda: len(made.rounds()) >= 2, server)
    first.send_signal(signal.SIGSTOP)
    with soft_limit(CROWD + 200), ExitStack() as crowd:
        for _ in range(CROWD):
            crowd.enter_context(socket.create_connection(("127.0.0.1", made.port), timeout=20))
        first.send_signal(signal.SIGCONT)
        calm = len(made.rounds())
        made.wait(lambda: len(made.rounds()) >= calm + 2, server)
        first.send_signal(signal.SIGSTOP)
        newcomer = made.join("b")
        made.wait(lambda: any(e["client"] == "b" for e in made.events("connected")), server)
        first.send_signal(signal.SIGCONT)
        assert [made.end(p) for p in (server, first, newcomer)] == [0, 0, 0], made.logs()
    assert made.rounds()[-1]["clients"] == 2


def test_the_soft_limit_is_raised_as_far_as_it_is_needed():
    with soft_limit(SPARE + STRANGERS + 100):
        assert connections(100) == OF_A_CLIENT * 100 + STRANGERS
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == OF_A_CLIENT * 100 + STRANGERS + SPARE


def test_what_the_machine_allows_is_not_exceeded(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert connections(3) == 1024 - SPARE
    with refuses("FP5068", "1000", "2256", "1024"):
        connections(1000)


def test_the_unit_starts_a_server_again_whatever_has_ended_it():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string((ROOT / "clients" / "fedpeft-serve.service").read_text())
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    assert "RestartPreventExitStatus" not in service
    assert int(service["LimitNOFILE"]) >= OF_A_CLIENT * 1000 + STRANGERS + SPARE

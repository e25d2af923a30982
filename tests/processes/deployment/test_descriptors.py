"""Connections that say nothing: they fill up their own places for the time of a handshake, and no file's."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack

import pytest

from tests.unit.deployment.test_descriptors import soft_limit

CROWD = 1100
"""More than the 1,024 descriptors that most systems give a process."""


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

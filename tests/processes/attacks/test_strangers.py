"""Strangers at the door: more connections than a process may have files, in every state that a connection can be in."""

from __future__ import annotations

import random
import resource
import signal
import socket
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.attacks.scale import SEED, scaled
from tests.fleet import Fleet

STRANGERS = 1_100


@contextmanager
def open_files(count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def comes(port, chance):
    """Connect as a stranger that is silent, sends bytes that are not TLS or half a greeting, or leaves at once."""
    near = socket.create_connection(("127.0.0.1", port), timeout=30)
    kind = chance.randrange(6)
    with suppress(OSError):
        if kind == 1:
            near.sendall(b"GET / HTTP/1.1\r\n\r\n")
        elif kind == 2:
            near.sendall(chance.randbytes(chance.randrange(1, 4096)))
        elif kind == 3:
            near.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(40))
        elif kind == 4:
            near.shutdown(socket.SHUT_WR)
        elif kind == 5:
            near.close()
    return near


@pytest.mark.long
@pytest.mark.parametrize("ulimit", ["-Sn 1024", "-n 1024"], ids=["can be raised", "the most there is"])
def test_strangers_end_no_federation(fleet, ulimit):
    """Rounds go on while they come and stay, and both clients see the end."""
    made: Fleet = fleet(clients=2, rounds=12, measure="validation(every=12)")
    made.ulimit = ulimit
    server = made.serve("--wait-for", "1")
    first = made.join("a")
    made.wait(lambda: len(made.rounds()) >= 2, server)
    first.send_signal(signal.SIGSTOP)
    chance = random.Random(SEED)
    with open_files(STRANGERS + 300), ExitStack() as crowd:
        for _ in range(scaled(STRANGERS)):
            crowd.enter_context(comes(made.port, chance))
        first.send_signal(signal.SIGCONT)
        calm = len(made.rounds())
        made.wait(lambda: len(made.rounds()) >= calm + 2, server)
        first.send_signal(signal.SIGSTOP)
        newcomer = made.join("b")
        made.wait(lambda: any(e["client"] == "b" for e in made.events("connected")), server)
        first.send_signal(signal.SIGCONT)
        assert [made.end(p) for p in (server, first, newcomer)] == [0, 0, 0], made.logs()
    refused = len(made.events("refused"))
    print(f"{scaled(STRANGERS)} strangers, {refused} refusals logged")

"""Tasks and reports between a server and its clients, over real connections with mutual TLS."""

from __future__ import annotations

import random
from dataclasses import replace

from fedpeft.communication.messages import Instruction
from fedpeft.deployment.wire.channel import CHUNK
from tests.deployment.door import good
from tests.fleet import Wire

HANDSHAKE, CALL, TASK, SHARE = 4000, 400, 400, 0.0025
"""What is on the wire beside what is reported, at most, as docs/deploy-limits.md states: bytes of a connection (mutual
TLS), of a call's headers, of a task's flow control, and a share of the payloads (HTTP/2 frames and TLS records)."""


def test_the_bytes_reported_are_those_on_the_socket(door):
    """A wire between client and server counts every byte, TLS and all."""
    wire = Wire(door.gateway.port)
    payload = random.Random(0).randbytes(3 * CHUNK + 7)
    door.roster.enter("edge-1", 0)
    door.roster.start()
    with replace(door.link("edge-1"), address=f"127.0.0.1:{wire.port}").open() as connection:
        tasks = connection.iterate_tasks(door.registration())
        for round_number in range(1, 5):
            task = door.gateway.submit("edge-1", Instruction("train", round_number, 0, payload))
            assert next(tasks)[0] == task
            connection.submit(task, good(door, round_number=round_number, payload=payload))
    [session] = door.gateway.list_sessions()
    for reported, carried in ((session.received_bytes, wire.up), (session.sent_bytes, wire.down)):
        assert reported > 4 * len(payload)
        beside = HANDSHAKE + 5 * CALL + 4 * TASK + SHARE * reported
        print(f"reported {reported}, carried {carried}, beside {carried - reported}")
        assert reported < carried < reported + beside

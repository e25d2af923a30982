r"""A process with many clients that train nothing and return what they receive.

python -m experiments.transport.fleet ADDRESS CERTS RUN CLIENTS own|bare ROUNDS
"""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc

from fedpeft.communication.messages import Report
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.channel import CHUNK
from fedpeft.deployment.wire.connection import Link, LostError

DOWN, UP = "/bare/Down", "/bare/Up"


def run_own_client(link: Link, run: str) -> None:
    """Run a client of the gateway without a model."""
    with link.open() as connection, contextlib.suppress(LostError):
        for task, asked in connection.iterate_tasks(v2.Registration(run=run, rows=1)):
            connection.submit(task, Report(asked.client, asked.round, asked.payload, rows=1))


def split_into_chunks(payload: bytes) -> Iterator[bytes]:
    """Split a payload into the messages of a bare stream."""
    view = memoryview(payload)
    return (bytes(view[i : i + CHUNK]) for i in range(0, len(view), CHUNK))


def run_bare_client(link: Link, rounds: int) -> None:
    """Transfer the same bytes over plain gRPC streams, without tasks, headers or names."""
    secret = link.credentials
    assert secret is not None
    credentials = grpc.ssl_channel_credentials(secret.authority, secret.key, secret.certificate)
    with grpc.secure_channel(link.address, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        for _ in range(rounds):
            received = b"".join(channel.unary_stream(DOWN)(b""))
            channel.stream_unary(UP)(split_into_chunks(received))


def main() -> None:
    """Run the clients in threads; print the CPU seconds of this process at the end."""
    address, certs, run, count, kind, rounds = sys.argv[1:]
    threads = []
    for i in range(int(count)):
        name = f"client-{i:03d}"
        link = Link(address, name, Credentials.load_client(Path(certs) / "clients" / name))
        work = (run_own_client, (link, run)) if kind == "own" else (run_bare_client, (link, int(rounds)))
        threads.append(threading.Thread(target=work[0], args=work[1]))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime)


if __name__ == "__main__":
    main()

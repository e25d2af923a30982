"""A gateway at a port of this machine with its certificates, and clients that talk to it over loopback."""

from __future__ import annotations

import contextlib
import threading
import time

import grpc

from fedpeft import __version__
from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.identity.authentication import Doorkeeper
from fedpeft.deployment.identity.certificates import Authority, RevocationList
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.identity.members import Roster
from fedpeft.deployment.server.event_log import Events
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.channel import CHUNK
from fedpeft.deployment.wire.connection import Link, LostError
from fedpeft.deployment.wire.gateway import Gateway
from fedpeft.errors import RunError

LIMIT = 4 * CHUNK


class Door:
    """A gateway at a port of this machine, its certificates, and what it has logged."""

    def __init__(self, folder, places=3):
        self.folder = folder
        self.authority = Authority(folder / "certs", 30)
        self.authority.ensure()
        self.authority.server(["localhost", "127.0.0.1"])
        self.entries: list[tuple[str, dict]] = []
        self.events = Events(folder / "serve.jsonl", lambda event, fields: self.entries.append((event, fields)))
        self.roster = Roster(folder / "roster.json", places)
        self.gateway = self.open()

    def open(self, port=0):
        own = Credentials.load_server(self.folder / "certs")
        return self.open_with(grpc.ssl_server_credentials([(own.key, own.certificate)], own.authority, True), port)

    def open_with(self, credentials, port=0):
        authority = (self.folder / "certs" / "ca.pem").read_bytes()
        keeper = Doorkeeper(RevocationList(self.folder / "certs" / "revoked.pem", authority))
        told = v2.Description(run=self.roster.run, software=__version__)
        gateway = Gateway(
            told, self.roster, keeper, lambda round_number, rows: LIMIT, lambda registration: None, self.events
        )
        gateway.start(f"127.0.0.1:{port}", credentials)
        return gateway

    def link(self, name, host="127.0.0.1", called=None):
        folder = self.folder / "certs" / "clients" / name
        if not folder.exists():
            self.authority.client(name)
        return Link(f"{host}:{self.gateway.port}", called or name, Credentials.load_client(folder))

    def registration(self, **more):
        return v2.Registration(run=self.roster.run, rows=10, **more)

    def reasons(self, event):
        return [fields["reason"] for found, fields in self.entries if found == event]

    def until(self, condition, seconds=20):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.entries
            time.sleep(0.01)


@contextlib.contextmanager
def client(door, name="edge-1", **more):
    """Open a connection with its stream of tasks, after the server knows the client."""
    with door.link(name, **more).open() as connection:
        tasks = connection.iterate_tasks(door.registration())
        got: list = []

        def read():
            with contextlib.suppress(LostError, RunError):
                got.append(next(tasks))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        door.until(lambda: any(s.member.name == name and s.connected for s in door.gateway.list_sessions()))
        connection.first = lambda: (reader.join(20), got[0])[1]
        yield connection


def asked(door, connection, name="edge-1", round_number=1):
    """Give the client a task and return its name."""
    door.roster.start()
    client_id = door.roster.find(name).id
    task = door.gateway.submit(name, Instruction("train", round_number, client_id, b"state"))
    assert connection.first()[0] == task
    return task


def good(door, name="edge-1", round_number=1, payload=b"update"):
    return Report(door.roster.find(name).id, round_number, payload, rows=10, loss=1.0)

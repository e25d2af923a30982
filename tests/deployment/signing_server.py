"""A server that signs its rounds, and clients that keep what it says, without a connection."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedpeft.communication.broadcast_digests import BroadcastDigests, compute_common_digest, compute_digest, format_form
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.messages import Instruction
from fedpeft.deployment.client.instruction_policy import InstructionPolicy
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.identity.signing import RECORD, Signer, Verifier
from fedpeft.deployment.transcript.announcements import Announcements
from fedpeft.deployment.transcript.round_record import RoundRecord, parse_record
from fedpeft.deployment.transcript.transcript import Transcript, compute_record_limit
from fedpeft.parts.families import strategies
from fedpeft.peft.adapter import AdapterShape, Layout, TensorSpec

RUN, SETTINGS = "0123456789abcdef", "5" * 64
STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)}


def task(round_number=1, kind="train", client=0, **more):
    return Instruction(kind, round_number, client, b"payload", 0.1, rank=2, alpha=4.0, **more)


def release(instruction, state=STATE, **more):
    states = {format_form(instruction.form): compute_digest(state)} if instruction.kind != "prepare" else {}
    return BroadcastDigests(instruction.kind, instruction.round, states, compute_common_digest(instruction), **more)


def policy(mixed=True, **parts):
    """Return the policy of a client with an adapter of rank 2 and alpha 4.

    With mixed ranks, the policy also accepts rank 1 with alpha 2.
    """
    tensors = TensorSpec("a", (2, 3), "lora_A", "m"), TensorSpec("b", (3, 2), "lora_B", "m")
    layout = Layout(tensors, AdapterShape(2, 4.0))
    given = {"strategy": strategies.build("flexlora"), "downlink": parse_codec("fp32"), "secure_sum": None} | parts
    return InstructionPolicy(layout, SimpleNamespace(**given), 0, mixed)


class Server:
    """A server with certificates, which says what a test has it say."""

    def __init__(self, folder, name="server", tls=True):
        self.folder, self.name = folder, name
        self.authority = Authority(folder / "certs", 30)
        if self.authority.ensure():
            self.authority.server(["127.0.0.1"])
        self.signer = Signer(Credentials.load_server(folder / "certs")) if tls else None
        self.open()

    @property
    def ca(self):
        return (self.folder / "certs" / "ca.pem").read_bytes()

    def open(self, settings=SETTINGS):
        """Start the server, or start it again."""
        self.said = Announcements(self.folder / f"{self.name}.jsonl", RUN, settings, 2, self.signer)

    def round(self, instruction, **more):
        self.said.announce(release(instruction, **more))
        return instruction

    def sends(self, client, instruction, **changes):
        """Send the client its missing records and a task; return the task as the client accepts it."""
        for record in self.said.get_records_since(len(client)):
            client.receive(record)
        name = changes.pop("name", "edge-1")
        return client.accept(replace(instruction, **changes), self.said.create_statement(name, instruction))


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path)


@pytest.fixture
def joins(server):
    def join(name="edge-1", verifier=True, **more):
        file = server.folder / f"{name}.transcript.jsonl"
        given = {
            "policy": policy(),
            "run": RUN,
            "settings": SETTINGS,
            "client": name,
            "most": compute_record_limit(20),
        } | more
        return Transcript(file, verifier=Verifier(server.ca) if verifier else None, **given)

    return join


# -------------------------------------------------------------------------------------------------- a server that lies


def forged(server, client, **fields):
    """Return a record that the server signs although it can't follow the client's records."""
    head = client._chain.head
    record = RoundRecord(
        run=RUN, sequence=len(client), previous=head, kind="train", round=client._chain.round + 1, cohort=2,
        settings=SETTINGS, states={}, common=compute_common_digest(task()), base="", time=1_800_000_000,
    )  # fmt: skip
    now = parse_record(RoundRecord, server.said._statements[0].content).time
    return server.signer.sign(RECORD, replace(record, time=now, **fields).to_bytes())

"""A malicious server of secure sums, and real clients on real sockets, as processes: `run` says what it has read.

The server signs whatever its attack needs. An attack patches the server's own code in its process, and nothing of the
clients. Each attack aims at the update of one client, the victim: it brings the updates of the others to zero, wholly
or in part, so that the sum is the victim's update.

A new attack is a subclass of `Attack` in `ATTACKS`. The clients pin a roster and take part in sums of all of them.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from fedpeft import join, serve
from fedpeft.communication.decoding import decode
from fedpeft.communication.messages import Instruction
from fedpeft.communication.release import Release, digest_of, form_name
from fedpeft.deployment.pinned_roster import PinnedRoster
from fedpeft.privacy.secure_sum.contribution import Contribution, Total
from fedpeft.server.dispatch import Dispatch
from tests.fleet import Fleet

FIVE = ("a", "b", "c", "d", "e")
VICTIM = 0
"""The victim's id; ids go by the order of names."""

READ, GIVEN = "read.npz", "given.npz"
"""The sum that the server has got in round 1, and what the victim has put into it, by tensor."""

ALIKE = 0.99
"""Correlation of both from which on the victim's update counts as read."""

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.attacks.malicious_server", "fedpeft.clients.preload"])


class Attack:
    """What a server does otherwise than an honest one, by default nothing."""

    settings: ClassVar[Mapping[str, Any]] = {}
    """Of the federation."""

    reads: ClassVar[Sequence[str]] = ("lora_A", "lora_B")
    """Parts of the names of the tensors of which it reads the victim's update."""

    def sent(self, dispatch: Dispatch, instruction: Instruction) -> Instruction:
        """Return what a client is sent in a round of training."""
        return instruction

    def recorded(self, dispatch: Dispatch, release: Release) -> Release:
        """Return what all clients are told of a round of training."""
        return release

    def patch(self) -> None:
        """Make this process a server that attacks."""
        instruction, release = Dispatch.instruction, Dispatch.release

        def sent(dispatch, kind, client, *given, **more):
            made = instruction(dispatch, kind, client, *given, **more)
            return self.sent(dispatch, made) if kind == "train" else made

        def recorded(dispatch, kind, *given, **more):
            made = release(dispatch, kind, *given, **more)
            return self.recorded(dispatch, made) if kind == "train" else made

        Dispatch.instruction, Dispatch.release = sent, recorded


def _without_adapter(dispatch: Dispatch) -> bytes:
    """Return a model whose factors are zero: neither of them has a gradient."""
    setup = dispatch.setup
    state = {n: torch.zeros_like(t) if "lora_" in n else t for n, t in dispatch.progress.adapter.items()}
    return setup.downlink.encode(state, shapes=setup.layout.shapes)


@dataclass
class OtherForm(Attack):
    """All but the victim get a form of their own, and in it a model that does not learn; one record has both."""

    rank: int
    alpha: float

    def sent(self, dispatch, instruction):
        if instruction.client == VICTIM:
            return instruction
        return replace(instruction, payload=_without_adapter(dispatch), rank=self.rank, alpha=self.alpha)

    def recorded(self, dispatch, release):
        name = form_name(Instruction("train", 1, 0, b"", rank=self.rank, alpha=self.alpha).form)
        state = decode(_without_adapter(dispatch), dispatch.setup.layout.shapes)
        return replace(release, states={**release.states, name: digest_of(state)})


@dataclass
class OtherFields(Attack):
    """All but the victim get other values of fields that no record fixes."""

    fields: Mapping[str, Any] = field(default_factory=dict)

    reads = ("lora_A",)

    def sent(self, dispatch, instruction):
        return instruction if instruction.client == VICTIM else replace(instruction, **self.fields)


class Uncompared(OtherForm):
    """One record says of the only form that nobody compares it; all but the victim get a model that does not learn."""

    def __init__(self) -> None:
        super().__init__(0, 0.0)

    def sent(self, dispatch, instruction):
        made = super().sent(dispatch, instruction)
        return replace(made, rank=instruction.rank, alpha=instruction.alpha)

    def recorded(self, dispatch, release):
        return replace(release, states=dict.fromkeys(release.states, ""))


ATTACKS: dict[str, Attack] = {
    "other alpha": OtherForm(8, 32.0001),
    "no rank": OtherForm(0, 0.0),
    "no digest": Uncompared(),
    "one step": OtherFields({"steps": 1}),  # in the first step B is zero, and A has no gradient
}


@dataclass(frozen=True)
class Outcome:
    """What has come of an attack.

    Attributes:
        read: correlation of the sum with the victim's update; 0: there was no sum.
        logs: what each process has said, by name.
        codes: exit codes of the clients that have left, by name.
    """

    read: float
    logs: Mapping[str, str]
    codes: Mapping[str, int]


def run(made: Fleet, name: str, seconds: float = 240) -> Outcome:
    """Return the outcome of an attack, as soon as there is a sum, the round is over, or all clients have left."""
    roster = PinnedRoster.of_authority(made.folder / "certs")
    (made.folder / "roster.txt").write_text(roster.to_text())
    words = ["run.toml", "--listen", f"127.0.0.1:{made.port}", "--output", "run"]
    server = started(made.folder, "serve", words, name)
    clients = {}
    for client in FIVE:
        words = ["--server", f"127.0.0.1:{made.port}", "--data", f"{client}.jsonl", "--state", "state", "--threads",
                 "1", "--certs", f"certs/clients/{client}", "--roster", "roster.txt", "--roster-hash", roster.hash,
                 "--fewest", "5"]  # fmt: skip
        clients[client] = started(made.folder, client, words, name)

    def over() -> bool:
        alive = any(process.exitcode is None for process in clients.values())
        return (made.folder / READ).exists() or "is void" in made.log("serve") or not alive or not server.is_alive()

    try:
        made.wait(over, seconds=seconds)
        codes = {client: process.exitcode for client, process in clients.items() if process.exitcode is not None}
    finally:
        for process in (server, *clients.values()):
            process.kill()
            process.join()
    return Outcome(_likeness(made.folder, ATTACKS[name]), {n: made.log(n) for n in ("serve", *FIVE)}, codes)


def _likeness(folder: Path, attack: Attack) -> float:
    if not (folder / READ).exists():
        return 0.0
    read, given = np.load(folder / READ), np.load(folder / GIVEN)
    names = [name for name in given.files if any(part in name for part in attack.reads)]
    both = [np.concatenate([file[name].ravel() for name in names]) for file in (read, given)]
    return float(np.corrcoef(*both)[0, 1])


def started(folder: Path, name: str, words: Sequence[str], attack: str) -> BaseProcess:
    """Return the process of the server, or of the client called `name`, begun in a folder."""
    process = _forks.Process(target=_lived, args=(folder, name, list(words), attack))
    process.start()
    return process


def _lived(folder: Path, name: str, words: list[str], attack: str) -> None:
    os.chdir(folder)
    sink = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.environ["COLUMNS"] = "300"
    if name == "serve":
        ATTACKS[attack].patch()
        _keep_sums()
        raise SystemExit(serve.main(words))
    _keep_victims_update()
    raise SystemExit(join.main(words))


def _save(file: str, tensors: Mapping[str, np.ndarray]) -> None:
    np.savez(f"{file}.partial.npz", **tensors)
    os.replace(f"{file}.partial.npz", file)


def _keep_sums() -> None:
    update = Total.update

    def kept(self, shapes, dtype, *divisor):
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1]
        _save(READ, dict(zip(shapes, np.split(self.vector, ends), strict=True)))
        return update(self, shapes, dtype, *divisor)

    Total.update = kept


def _keep_victims_update() -> None:
    integers = Contribution.integers

    def kept(self, told, secure, seed, round, client, *secret):
        if round and client == VICTIM:
            _save(GIVEN, {name: tensor.double().numpy() * self.weight for name, tensor in self.update.items()})
        return integers(self, told, secure, seed, round, client, *secret)

    Contribution.integers = kept

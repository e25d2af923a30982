"""`python -m experiments.secure_sum`: bytes and CPU seconds of one secure sum of many clients with dropouts."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import tyro

from experiments import write_between
from fedpeft.parts.families import SUMS
from fedpeft.privacy.secure_sum.announcement import Announcement, signs
from fedpeft.privacy.secure_sum.contribution import BESIDE
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.privacy.secure_sum.identities import simulated_key, simulated_roster
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.neighbours import graph
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.privacy.secure_sum.words import read_sealed

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

SEED, ROUND = 0, 1

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """The measurements to run."""

    clients: tuple[int, ...] = (100,)
    """clients of a sum; several numbers are measured in turn. In large sums, a client's neighbors are a subset"""
    parameters: int = 1_000_000
    """parameters of the adapter"""
    dropouts: float = 0.1
    """share of the clients that drop out once their keys are shared"""
    secure: str = "secure_sum"
    """the secure sum, in the form of --privacy"""
    whole: int = 2
    """clients that encode and mask; the vectors of the others are random bytes, which cost the server as much"""
    write_readme: bool = False
    """put the table into the README of this experiment"""


class Light(Member):
    """A member with random bytes as its vector, which cost nothing to compute."""

    def vector(self, sealed: bytes, numbers: np.ndarray) -> bytes:
        """Return random bytes, as many as for a real vector of 8, 16 or 32 bits."""
        self._begin_step(3)
        self.sealed = read_sealed(sealed)
        return os.urandom(self.terms.length * self.terms.bits // 8)


class Bill:
    """CPU seconds of the server and of each client, and bytes of each client."""

    def __init__(self) -> None:
        """Start with empty counts."""
        self.seconds: defaultdict[int, float] = defaultdict(float)
        self.server = 0.0
        self.up: Counter[int] = Counter()
        self.down: Counter[int] = Counter()

    def step(
        self,
        clients: list[int],
        said: Callable[[int], bytes],
        answer: Callable[[int, bytes], bytes],
        take: Callable[[int, bytes], None],
    ) -> None:
        """Run and time one step of a sum."""
        for client in clients:
            began = time.process_time()
            told = said(client)
            asked = time.process_time()
            answered = answer(client, told)
            done = time.process_time()
            take(client, answered)
            self.server += asked - began + time.process_time() - done
            self.seconds[client] += done - asked
            self.down[client] += len(told)
            self.up[client] += len(answered)


def widen_bits(secure: SecureSum, clients: int) -> SecureSum:
    """Return the secure sum with enough bits for this number of clients."""
    while not secure.fits(clients, secure.bits):
        secure = replace(secure, bits=secure.bits + 1)
    return secure


def measure(settings: Settings, clients: int) -> str:
    """Measure one sum, and return a row of the Markdown table."""
    secure, bill, ids = widen_bits(SUMS.build(settings.secure), clients), Bill(), list(range(clients))
    told = Announcement(os.urandom(16), len(ids), settings.parameters, BESIDE, 1.0)
    terms, roster, integers = (
        told.terms(secure, SEED, ROUND),
        simulated_roster(SEED, len(ids)),
        told.integers(secure, 1),
    )
    at = Coordinator(terms, graph(ids, secure.neighbours, SEED, ROUND))
    kinds = [Member if i < settings.whole else Light for i in ids]
    members = [kinds[i](i, terms, simulated_key(SEED, i), roster) for i in ids]
    update = np.random.default_rng(0).normal(size=settings.parameters)
    update /= np.linalg.norm(update)

    def vector(client: int, sealed: bytes) -> bytes:
        if client >= settings.whole:
            return members[client].vector(sealed, update)
        turns, drawn = signs(SEED, ROUND, settings.parameters), np.random.default_rng(client)
        return members[client].vector(sealed, integers.encode(update, np.ones(BESIDE), turns, drawn))

    def witness(client: int, said: bytes) -> bytes:
        signed = members[client].witness(said)
        members[client].survivors = members[
            staying[0]
        ].survivors  # equal lists; copies would fill this process's memory
        return signed

    staying = ids[: len(ids) - round(settings.dropouts * len(ids))]
    bill.step(ids, lambda _: told.to_bytes(), lambda i, _: members[i].keys(), at.take_keys)
    bill.step(ids, at.peers, lambda i, said: members[i].shares_for(said), at.take_sealed)
    bill.step(staying, at.sealed_for, vector, at.take_vector)
    arrived = at.write_survivors()
    bill.step(staying, lambda _: arrived, witness, at.take_witness)
    bill.step(staying, at.witnesses_for, lambda i, said: members[i].unmask(said), at.take_shares)
    began = time.process_time()
    total = at.sum()
    integers.decode(total, len(staying), signs(SEED, ROUND, settings.parameters))
    bill.server += time.process_time() - began
    client = max(bill.seconds[i] for i in range(settings.whole))
    up, down = max(bill.up.values()), max(bill.down.values())
    return (
        f"| {clients:,} | {terms.neighbor_count} | {len(ids) - len(staying):,} | {settings.parameters:,} "
        f"| {secure.bits} | {up / settings.parameters:.3f} | {up - terms.length * secure.bits // 8:,} | {down:,} "
        f"| {client:.2f} | {bill.server:.2f} |"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    settings = tyro.cli(Settings, args=arguments, prog="python -m experiments.secure_sum")
    lines = [
        "| clients | neighbours | dropouts | parameters | bits | up, bytes a parameter | of it keys, shares, bytes "
        "| down beside the model, bytes | client CPU, s | server CPU, s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    print(*lines, sep="\n")
    for clients in settings.clients:
        lines.append(measure(settings, clients))
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    if settings.write_readme:
        write_between(README, BEGIN, END, table)


if __name__ == "__main__":
    main()

"""Digests of what the server sends in a round, by which clients check that it is the same for all of them.

A state has one digest in each form (LoRA rank and alpha), whatever path leads a client to it. It is the digest of the
decoded payload, so it exists only if decoding gives the same bits on every machine. Lossless codecs do, and codecs that
chain versions, which rely on it. Other codecs multiply matrices to decode, and processors round such products
differently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from fedpeft.communication.messages import ADDED, ALIKE, LOCAL, OWN, PAYLOADS, Instruction, Kind
from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import AdapterShape, State


@dataclass(frozen=True)
class BroadcastDigests:
    """Digests of what all clients that are asked together receive alike.

    Attributes:
        kind: kind of their instructions.
        round: round of their instructions.
        states: digests by `format_state_name`, or one of `UNCOMPARED`.
        common: `compute_common_digest` of every instruction.
        base: digest of what exact strategies have added to the base; empty: nothing.
        asks: question that every instruction asks; empty: none.
    """

    kind: Kind
    round: int
    states: Mapping[str, str] = field(default_factory=dict)
    common: str = ""
    base: str = ""
    asks: str = ""


UNCOMPARED: Final[Mapping[str, str]] = {
    "groups": "each group of clients has a model of its own",
    "ranks": "each client is sent ranks of its own",
    "lossy": "the downlink is lossy, and its states are not the same bits on every machine",
}
"""Entries of a record that replace a digest if clients can't compare a state, with the reasons."""


def format_form(form: AdapterShape | None) -> str:
    """Return the name of a form among the states."""
    return f"rank {form.rank}, alpha {float(form.alpha)!r}" if form else "whole"


def format_state_name(form: AdapterShape | None, newcomer: bool) -> str:
    """Return the name of a state: a newcomer is also sent the tensors that clients keep afterwards."""
    return format_form(form) + (", newcomers" if newcomer else "")


def compute_digest(state: State) -> str:
    """Compute the SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _compute_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _convert_to_plain(instruction: Instruction, name: str) -> object:
    """Return a field as JSON stores it: numbers as the floats that arrive, payloads as digests."""
    value = getattr(instruction, name)
    if name in PAYLOADS:
        return _compute_sha256(value)
    return float(value) if name in ("learning_rate", "alpha", "bits") else value


def is_sent(instruction: Instruction, name: str) -> bool:
    """Return whether a field counts: one that an earlier version lacks does so only if it is used."""
    return name not in ADDED or bool(getattr(instruction, name))


def compute_common_digest(instruction: Instruction) -> str:
    """Compute the digest of the fields that are the same for all clients of a round."""
    return _compute_sha256(json.dumps([_convert_to_plain(instruction, name) for name in ALIKE]).encode())


def select_own_fields(instruction: Instruction) -> dict[str, int | float | str]:
    """Return the fields in which clients of a round may differ, in the clear, for the server's statement."""
    names = [name for name in OWN if is_sent(instruction, name)]
    return {name: _convert_to_plain(instruction, name) for name in names}  # type: ignore[misc]  # none is a payload


def compute_instruction_digest(instruction: Instruction) -> str:
    """Compute the digest of everything that one client receives."""
    names = [name for name in vars(instruction) if name not in LOCAL and is_sent(instruction, name)]
    fields = {name: _convert_to_plain(instruction, name) for name in names}
    return _compute_sha256(json.dumps(fields, sort_keys=True).encode())


def is_newcomer(instruction: Instruction) -> bool:
    """Return whether a client that keeps tensors for itself receives their initial values."""
    return bool(instruction.private) and not instruction.acknowledged


def write_released(own: str, smaller: Mapping[int, str]) -> str:
    """Return `Instruction.released`: the digest of a client's own state, and those of states of smaller ranks."""
    return " ".join([own, *(f"{rank}:{digest}" for rank, digest in sorted(smaller.items()))])


def check_released(
    instruction: Instruction,
    arrived: State,
    private: Iterable[str],
    shrink: Callable[[State, int], State | None] = lambda _state, _rank: None,
) -> None:
    """Reject a state that is not the one which the server has recorded for all clients.

    Clients of several ranks compare different states. If the smaller ones are the leading ranks of the larger ones, a
    client with a larger rank checks those of all smaller ranks, too.

    Args:
        instruction: the client's instruction.
        arrived: the decoded state (`fedpeft.communication.downlink.Arrival.comparable_state`).
        private: tensors that stay with clients; the recorded state of newcomers contains initial values of them.
        shrink: returns the state of a client of a smaller rank, given this client's state; None: it is not known.

    Raises:
        PayloadError: the state is another one.
    """
    if not instruction.released:
        return
    released, *others = instruction.released.split(" ")
    own = set() if is_newcomer(instruction) else set(private)
    state = {name: tensor for name, tensor in arrived.items() if name not in own}
    for rank, digest in (other.split(":") for other in others):
        expected = shrink(state, int(rank))
        if expected is not None and compute_digest(expected) != digest:
            raise PayloadError(
                f"FP6192 the server has recorded a model for clients of rank {rank} in round {instruction.round} that "
                "is not the leading ranks of this client's; nothing was trained on it"
            )
    if compute_digest(state) != released:
        raise PayloadError(
            f"FP6075 the model that the server sent in round {instruction.round} is not the one that it has recorded "
            "for all clients; nothing was trained on it"
        )

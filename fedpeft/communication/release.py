"""What a server hands out in a round, as digests: what clients find out by themselves to be the same for all of them.

A state has one digest in each form (LoRA rank and alpha), whatever way leads a client to it. It is the digest of what
comes out of a payload, and so it exists where that is the same bits on every machine: without loss, and with a codec
that chains versions, which relies on it. Other codecs multiply matrices to decode, whose rounding is a processor's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from fedpeft.communication.messages import PAYLOADS, Instruction, Kind
from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import ClientForm, State


@dataclass(frozen=True)
class Release:
    """What all clients that are asked together are told alike.

    Attributes:
        kind, round: as in their instructions.
        states: digests by `form_name`; empty: of a codec whose states can't be compared bit for bit.
        common: `common_digest` of every instruction.
        base: digest of what exact strategies have put into the base; empty: nothing.
    """

    kind: Kind
    round: int
    states: Mapping[str, str] = field(default_factory=dict)
    common: str = ""
    base: str = ""


def form_name(form: ClientForm | None) -> str:
    """What a form is called in a release."""
    return f"rank {form.rank}, alpha {float(form.alpha)!r}" if form else "whole"


def digest_of(state: State) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def common_digest(instruction: Instruction) -> str:
    """Of those fields of an instruction that no two clients of a round have different."""
    fields = (
        instruction.kind,
        instruction.round,
        float(instruction.learning_rate),
        instruction.trained,
        instruction.private,
        instruction.base,
        _sha256(instruction.correction),
        _sha256(instruction.told),
    )
    return _sha256(json.dumps(fields).encode())


def instruction_digest(instruction: Instruction) -> str:
    """Of all that one client is sent."""
    fields = {name: value for name, value in vars(instruction).items() if name not in (*PAYLOADS, "released")}
    fields |= {name: float(getattr(instruction, name)) for name in ("learning_rate", "alpha", "bits")}
    fields |= {name: _sha256(getattr(instruction, name)) for name in PAYLOADS}
    return _sha256(json.dumps(fields, sort_keys=True).encode())


def check_released(instruction: Instruction, arrived: State, private: Iterable[str]) -> None:
    """Refuse a state that is not the one which the server has recorded for all clients.

    Args:
        instruction: what the client is asked.
        arrived: what its payload has led to (`fedpeft.communication.downlink.Arrival.compared`).
        private: tensors that stay with clients; newcomers are sent initial values of them.

    Raises:
        PayloadError: it is another one.
    """
    if not instruction.released:
        return
    own = set(private)
    if digest_of({name: tensor for name, tensor in arrived.items() if name not in own}) != instruction.released:
        raise PayloadError(
            f"the model that the server sent in round {instruction.round} is not the one that it has recorded for all "
            "clients; nothing was trained on it"
        )

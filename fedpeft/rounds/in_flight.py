"""The clients that train while an asynchronous server steps: part of the checkpoint.

Without it, a resumed server would not have what these clients received and answered, and would ask others. Payloads and
states that several clients share are written once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpeft.clients.store import add_label, select_section
from fedpeft.communication.downlink import Package, SentState
from fedpeft.communication.messages import PAYLOADS, Instruction, Report
from fedpeft.peft.adapter import State

PLAIN = "plain"
"""The tensor that holds everything but payloads and states, as JSON."""


@dataclass(frozen=True)
class InFlight:
    """The clients that have an instruction and whose update is not in a step yet.

    Attributes:
        sent: what each of them was sent, in the order of sending.
        arrived: the reports of some of them, in the order of arrival.
    """

    sent: tuple[SentState, ...] = ()
    arrived: tuple[Report, ...] = ()

    def iterate_waves(self) -> Iterator[list[Instruction]]:
        """Yield the instructions without a report, those of one round together: clients are trained in groups."""
        done = {report.client for report in self.arrived}
        waiting = (s.instruction for s in self.sent if s.instruction.client not in done)
        for _, wave in groupby(waiting, key=lambda instruction: instruction.round):
            yield list(wave)

    def to_tensors(self) -> State:
        """Return the tensors for a checkpoint; none if no client is in flight."""
        if not self.sent:
            return {}
        pool = _Pool()
        plain = {
            "sent": [
                {
                    "instruction": pool.build_fields(s.instruction),
                    "state": pool.add_state(s.package.state),
                    "version": s.package.base,
                    "ranks": s.package.ranks,
                    "base_bytes": s.base_bytes,
                }
                for s in self.sent
            ],
            "arrived": [pool.build_fields(report) for report in self.arrived],
        }
        return {PLAIN: _convert_to_tensor(json.dumps(plain).encode()), **pool.to_tensors()}

    @classmethod
    def from_tensors(cls, state: State) -> InFlight:
        """Return the clients in flight that `to_tensors` has written."""
        if not state:
            return cls()
        plain = json.loads(_convert_to_bytes(state[PLAIN]))
        payloads = [_convert_to_bytes(tensor) for _, tensor in sorted(select_section(state, "payload").items())]
        states = {key: select_section(state, f"state/{key}") for key in {s["state"] for s in plain["sent"]}}
        sent = []
        for entry in plain["sent"]:
            instruction = _create_message(Instruction, entry["instruction"], payloads)
            package = Package(instruction.payload, states[entry["state"]], entry["version"], tuple(entry["ranks"]))
            sent.append(SentState(instruction, package, entry["base_bytes"]))
        return cls(tuple(sent), tuple(_create_message(Report, entry, payloads) for entry in plain["arrived"]))


class _Pool:
    """Payloads and states by number, each once."""

    def __init__(self) -> None:
        self._payloads: dict[bytes, int] = {}
        self._states: dict[int, tuple[str, State]] = {}  # by identity: clients with one package share its state

    def build_fields(self, message: Instruction | Report) -> dict[str, Any]:
        """Return the fields of a message, with numbers in place of payloads."""
        values = {field.name: getattr(message, field.name) for field in fields(message)}
        numbers = {
            name: self._payloads.setdefault(value, len(self._payloads))
            for name, value in values.items()
            if name in PAYLOADS
        }
        return values | numbers

    def add_state(self, state: State) -> str:
        """Return the key of a state."""
        return self._states.setdefault(id(state), (str(len(self._states)), state))[0]

    def to_tensors(self) -> State:
        """Return everything as tensors; copies, because states may share memory and a checkpoint may not."""
        made: State = add_label(
            "payload", {f"{number:09d}": _convert_to_tensor(data) for data, number in self._payloads.items()}
        )
        for key, state in self._states.values():
            made |= add_label(f"state/{key}", {name: tensor.clone() for name, tensor in state.items()})
        return made


def _create_message(cls: type[Any], values: dict[str, Any], payloads: Sequence[bytes]) -> Any:
    made = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return cls(**made | {name: payloads[values[name]] for name in PAYLOADS if name in values})


def _convert_to_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _convert_to_bytes(tensor: Tensor) -> bytes:
    data: bytes = tensor.numpy().tobytes()
    return data

"""The versions of the global state that clients hold, on the server: one chain for each form, no copy per client.

A version is the state of one round in one form (LoRA rank and alpha), as a lossy codec has made it. It is kept as the
payload that leads to it from the seeded start, so a chain takes about as many bytes as one newcomer a round. Versions
that nobody holds any more are dropped, and so are the oldest beyond `LONGEST`: who comes back after so long is sent the
way from the start.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from fedpeft.peft.adapter import ClientForm, State

LONGEST: Final = 256
"""Versions of one form that are kept at most."""

Form = ClientForm | None


@dataclass
class Versions:
    """Payloads from the start, by form and round."""

    payloads: dict[Form, dict[int, bytes]] = field(default_factory=dict)

    def get(self, form: Form, version: int) -> bytes | None:
        """The payload that leads to a version; None where it is not kept."""
        return self.payloads.get(form, {}).get(version)

    def add(self, round: int, made: dict[Form, bytes], held: Iterable[int]) -> None:
        """Add a round's versions, and keep only what is `held` by somebody."""
        wanted = {round, *held}
        for form, payload in made.items():
            self.payloads.setdefault(form, {})[round] = payload
        for form, chain in self.payloads.items():
            kept = sorted(version for version in chain if version in wanted)[-LONGEST:]
            self.payloads[form] = {version: chain[version] for version in kept}

    def state(self) -> State:
        """As tensors by name, for a checkpoint."""
        return {
            f"{form.rank if form else 0}/{form.alpha if form else 0.0!r}/{version}": torch.from_numpy(
                np.frombuffer(payload, np.uint8).copy()
            )
            for form, chain in self.payloads.items()
            for version, payload in chain.items()
        }

    @classmethod
    def of(cls, state: State) -> Versions:
        """From what `state` returned."""
        made = cls()
        for name, tensor in state.items():
            rank, alpha, version = name.split("/")
            form = ClientForm(int(rank), float(alpha)) if int(rank) else None
            made.payloads.setdefault(form, {})[int(version)] = tensor.numpy().tobytes()
        return made

"""What a killed run continues from: one file a round, written whole or not at all.

A checkpoint is a safetensors file; what is not a tensor is JSON in its header. It also holds the lengths of the
record files at that moment, and the round's own lines: they are written to the record files once the checkpoint is on
the disk, and again on resume. So nothing is told of a round that could still come out differently, and at most the
running round is lost. A checksum over all of it finds what a disk has changed.

It says who took part, so nobody else may read it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedpeft.errors import RunError
from fedpeft.machine import files
from fedpeft.peft.adapter import ClientForm, State

VERSION = 2


@dataclass
class Progress:
    """The server between two rounds.

    Attributes:
        round: the last finished round; 0 after the preparation, -1 before it.
        adapter: the global state.
        started: the state before round 1, with the head that the clients' statistics gave.
        memory: of the server optimizer, states by name.
        residual: what exact strategies have put into the base (`Residual.state`).
        variate: the server's control variate (SCAFFOLD).
        forms: LoRA rank and alpha of the clients whose form the strategy has changed.
        acknowledged: per client that took part, the last recorded round.
        held: per client that took part, the version of the state that it holds; 0: none of use.
        versions: of the state that clients hold (`Versions.state`).
        rows: of the clients that have been heard of.
        rejections: per client, how many of its updates were left out: its reputation.
        losses: the mean training loss of each round.
        counters: running totals (bytes up and down, seconds).
        offsets: lengths of the record files in bytes, without `lines`.
        lines: what the last round adds to each record file.
        fixed: what was probed at the start and must stay (kernel, workers, threads).
        clip: the clipping norm of the next round, where user-level privacy adapts it.
    """

    round: int = -1
    adapter: State = field(default_factory=dict)
    started: State = field(default_factory=dict)
    memory: dict[str, State] = field(default_factory=dict)
    residual: State = field(default_factory=dict)
    variate: State = field(default_factory=dict)
    forms: dict[int, ClientForm] = field(default_factory=dict)
    acknowledged: dict[int, int] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    versions: State = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)
    rejections: dict[int, int] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    counters: dict[str, float] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    clip: float | None = None


def _checksum(header: str, tensors: State) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run; the newest is kept, and the one before it until the newest is safe."""

    folder: Path

    def save(self, progress: Progress) -> None:
        """Write the state of the server after a round.

        Raises:
            RunError: the disk is full or can't be written; the checkpoint before stays valid.
        """
        tensors = {f"adapter/{n}": t.contiguous() for n, t in progress.adapter.items()}
        for kind in ("started", "residual", "variate", "versions"):
            tensors |= {f"{kind}/{n}": t.contiguous() for n, t in getattr(progress, kind).items()}
        for label, state in progress.memory.items():
            tensors |= {f"memory/{label}/{n}": t.contiguous() for n, t in state.items()}
        plain = {
            "version": VERSION,
            "round": progress.round,
            "acknowledged": progress.acknowledged,
            "held": progress.held,
            "rows": progress.rows,
            "rejections": progress.rejections,
            "losses": progress.losses,
            "forms": {client: (form.rank, form.alpha) for client, form in progress.forms.items()},
            "counters": progress.counters,
            "offsets": progress.offsets,
            "lines": progress.lines,
            "fixed": progress.fixed,
            "clip": progress.clip,
        }
        try:
            files.make_private_folder(self.folder)
            file = self.folder / f"{progress.round + 1:06d}.safetensors"
            header = json.dumps(plain)
            metadata = {"progress": header, "sha256": _checksum(header, tensors)}
            files.replace(file, save(tensors, metadata), private=True)
            for other in self.folder.iterdir():
                if other != file:
                    other.unlink()
        except OSError as error:
            raise RunError(f"the checkpoint in {self.folder} can't be written: {error.strerror}") from error

    @property
    def taken(self) -> bool:
        """Whether there is one."""
        return any(self.folder.glob("*.safetensors"))

    def load(self) -> Progress | None:
        """The newest checkpoint; None where there is none.

        Raises:
            RunError: it can't be read.
        """
        found = sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else []
        if not found:
            return None
        try:
            with safe_open(found[-1], framework="pt") as file:
                metadata = file.metadata()
                plain = json.loads(metadata["progress"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"the checkpoint {found[-1]} can't be read: {error}") from error
        if plain.pop("version", None) != VERSION:
            raise RunError(f"the checkpoint {found[-1]} was written by another version of fedpeft")
        if metadata.get("sha256") != _checksum(metadata["progress"], tensors):
            raise RunError(
                f"the checkpoint {found[-1]} can't be read: it is not what was written, the disk has changed it"
            )
        progress = Progress(**plain)
        progress.acknowledged = {int(client): round for client, round in progress.acknowledged.items()}
        progress.held = {int(client): version for client, version in progress.held.items()}
        progress.rows = {int(client): rows for client, rows in progress.rows.items()}
        progress.rejections = {int(client): count for client, count in progress.rejections.items()}
        forms: Any = progress.forms
        progress.forms = {int(client): ClientForm(rank, alpha) for client, (rank, alpha) in forms.items()}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "memory":
                label, _, rest = rest.partition("/")
                progress.memory.setdefault(label, {})[rest] = tensor
            else:
                getattr(progress, kind)[rest] = tensor
        return progress

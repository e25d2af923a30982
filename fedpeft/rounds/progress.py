"""The server state between two rounds, and its checkpoint: one file a round, written whole or not at all.

A checkpoint is a safetensors file; what is not a tensor is JSON in its header. It also holds the lengths of the record
files at that moment, and the round's own lines. These lines are written to the record files once the checkpoint is on
disk, and again on resume. So no file reports a round that could still come out differently, and at most the running
round is lost. A checksum over all of it detects damage on disk. The file reveals who took part, so nobody else may read
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedpeft.aggregation.aggregator import AggregationResult
from fedpeft.aggregation.safeguard import SafeguardState
from fedpeft.aggregation.server_optimizer import AVERAGE, drop_momentum
from fedpeft.clients.drift import States, flatten_states, unflatten_states
from fedpeft.clients.store import ClientStore, add_label, select_section
from fedpeft.communication.base_residual import Residual, ResidualFiles
from fedpeft.communication.downlink import Versions
from fedpeft.errors import RunError
from fedpeft.machine import files
from fedpeft.peft.adapter import AdapterShape, State
from fedpeft.reporting.records import Records
from fedpeft.rounds.best_state import BestState
from fedpeft.rounds.in_flight import InFlight
from fedpeft.rounds.traffic import Counters

if TYPE_CHECKING:
    from fedpeft.rounds.acceptance import ReportReceiver

VERSION = 5

OF_CLIENTS = ("acknowledged", "held", "rows", "rejections")
"""Attributes of a `ServerState` with a number per client; a checkpoint stores them as arrays of ids and numbers."""


@dataclass(frozen=True)
class ServerState:
    """The server between two rounds.

    Attributes:
        round: the last finished round; 0 after the preparation.
        adapter: the global state.
        started: the state before round 1, with the head from the clients' statistics.
        memory: state of the server optimizer, by name.
        residual: what exact strategies have put into the base.
        drift: the states of the server's drift corrections, by name (`fedpeft.clients.drift`).
        forms: LoRA rank and alpha of the clients whose adapter shape the strategy has changed.
        acknowledged: for each client that took part, the last recorded round.
        held: for each client that took part, the version of the state that it holds; 0: none of use.
        versions: versions of the state that clients hold.
        rows: example counts of the clients that have reported.
        rejections: for each client, how many of its updates were refused: its reputation.
        losses: the mean training loss of each round.
        counters: running totals.
        offsets: lengths of the record files in bytes, without `lines`.
        lines: what the last round adds to each record file.
        fixed: run constants that were measured at the start and must stay (kernel, workers, threads).
        clip: the clipping norm of the next round, if user-level privacy adapts it.
        told: broadcast tensors, from the sums before round 1 (`Instruction.told`).
        standing: state of the safeguard.
        best: the best state so far on the validation set, if the run keeps it.
        learned: what a task-aware or group strategy remembers of earlier rounds.
        in_flight: the clients of an asynchronous run that train meanwhile.
        lowered: the last round whose undone step lowered the clients' learning rate; 0: none.
        hooks: what each hook of the loop saves, by its name.
    """

    round: int
    adapter: State
    started: State = field(default_factory=dict)
    memory: dict[str, State] = field(default_factory=dict)
    residual: Residual = field(default_factory=Residual)
    drift: States = field(default_factory=dict)
    forms: dict[int, AdapterShape] = field(default_factory=dict)
    acknowledged: dict[int, int] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    versions: Versions = field(default_factory=Versions)
    rows: dict[int, int] = field(default_factory=dict)
    rejections: dict[int, int] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    offsets: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    clip: float | None = None
    told: State = field(default_factory=dict)
    standing: SafeguardState = field(default_factory=SafeguardState)
    best: BestState | None = None
    learned: State = field(default_factory=dict)
    in_flight: InFlight = field(default_factory=InFlight)
    lowered: int = 0
    hooks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def after(
        self, outcome: AggregationResult, taken: ReportReceiver, made: Mapping[AdapterShape | None, bytes], clients: int
    ) -> ServerState:
        """Return the server state after a round.

        Args:
            outcome: the aggregation result of the round.
            taken: the reports of the round.
            made: the round's new versions (`Downlink.made`).
            clients: number of all clients.
        """
        round_number, lost = (
            self.round + 1,
            dict.fromkeys(taken.lost_clients, 0),
        )  # a client without state is a newcomer
        new = {client: 0 if client in taken.forms else asked for client, asked in taken.accepted.items()}
        held = self.held | new | lost
        rejected = {client: self.rejections.get(client, 0) + 1 for client in taken.rejected}
        return replace(
            self,
            round=round_number,
            adapter=outcome.state,
            memory=outcome.memory,
            residual=self.residual.after(round_number, outcome.residuals, next(iter(self.adapter.values())).dtype),
            drift=taken.compute_next_drift(clients),
            forms=self.forms | taken.forms,
            acknowledged=self.acknowledged | taken.accepted | lost,
            held=held,
            versions=self.versions.after(round_number, made, held.values()),
            rows=self.rows | taken.rows,
            rejections=self.rejections | rejected,
            losses=self.losses if taken.train_loss is None else [*self.losses, taken.train_loss],
            clip=outcome.clip,
            learned=self.learned if outcome.learned is None else outcome.learned,
        )

    def undo_step(self, after: ServerState, standing: SafeguardState) -> ServerState:
        """Return the state without the step to `after`: keep what clients reported, drop momentum."""
        told: dict[str, Any] = {"round": after.round, "rows": after.rows, "rejections": after.rejections}
        lost = {client: 0 for client, round_number in after.acknowledged.items() if not round_number}  # newcomers
        told |= {"acknowledged": self.acknowledged | lost, "held": self.held | lost}
        return replace(self, standing=standing, memory=drop_momentum(self.memory), **told)

    @property
    def reached_state(self) -> State:
        """What would be the result now: the global state, or the average of all states if the server keeps one."""
        return self.memory.get(AVERAGE, self.adapter)

    @property
    def result(self) -> tuple[State, State]:
        """The result of the run: the best or the last state, and what is then in the base, by module."""
        return (self.best.adapter, self.best.residual) if self.best else (self.reached_state, self.residual.total)

    @property
    def kept_round(self) -> int:
        """The round after which the state of `result` was the global one."""
        return self.best.round if self.best else self.round

    def compute_digest(self, *fingerprints: str) -> str:
        """Return a digest of all that the next round's outcome depends on, with the `fingerprints` of hooks.

        It leaves out `rows`, which have no weight under privacy (batteries have a fingerprint). It also leaves out
        `held`, which decides how a state is sent but not which one arrives
        (`test_every_version_leads_to_the_same_bits`).
        """
        forms, acknowledged = sorted(self.forms.items()), sorted(self.acknowledged.items())
        plain = (self.round, forms, acknowledged, self.clip, self.standing, self.losses)  # precision rules read losses
        tensors = add_label("adapter", self.adapter) | add_label("drift", flatten_states(self.drift))
        tensors |= add_label("told", self.told) | add_label("learned", self.learned)
        tensors |= add_label("residual", self.residual.to_tensors()) | add_label(
            "in_flight", self.in_flight.to_tensors()
        )
        for label, state in self.memory.items():
            tensors |= add_label(f"memory/{label}", state)
        return _compute_checksum(repr(plain) + "".join(fingerprints), tensors)

    def to_bytes(self) -> bytes:
        """Return the state as the bytes of a checkpoint."""
        tensors = {
            f"{kind}/{name}": tensor.contiguous()
            for kind, state in (
                ("adapter", self.adapter),
                ("started", self.started),
                ("residual", self.residual.to_tensors()),
                ("drift", flatten_states(self.drift)),
                ("versions", self.versions.to_tensors()),
                ("told", self.told),
                ("learned", self.learned),
                ("best", self.best.to_tensors() if self.best else {}),
                ("in_flight", self.in_flight.to_tensors()),
                *((f"clients/{name}", _convert_to_arrays(getattr(self, name))) for name in OF_CLIENTS),
                *((f"memory/{label}", state) for label, state in self.memory.items()),
            )
            for name, tensor in state.items()
        }
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*TENSORS, *OF_CLIENTS)}
        plain |= {"version": VERSION, "counters": asdict(self.counters), "standing": asdict(self.standing)}
        plain["forms"] = {client: (form.rank, form.alpha) for client, form in self.forms.items()}
        header = json.dumps(plain)
        return save(tensors, {"progress": header, "sha256": _compute_checksum(header, tensors)})

    @classmethod
    def read(cls, path: Path) -> ServerState:
        """Read a checkpoint.

        Raises:
            RunError: it can't be read, or another version has written it.
        """
        try:
            with safe_open(files.check_regular_file(path), framework="pt") as file:
                metadata = file.metadata()
                header = metadata["progress"]
                plain = files.parse_json(header.encode())
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"FP5199 the checkpoint {path} can't be read: {error}") from error
        version = plain.pop("version", None) if isinstance(plain, dict) else None
        if version != VERSION:
            raise RunError(
                f"FP5200 the checkpoint {path} has another format; continue with the version of fedpeft that wrote it"
            )
        if metadata.get("sha256") != _compute_checksum(header, tensors):
            raise RunError(
                f"FP5201 the checkpoint {path} can't be read: the file on disk differs from what was written; "
                "restore it, or start a new run"
            )
        try:
            return cls._from_plain(plain, tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # a header that was edited by hand
            raise RunError(
                f"FP5202 the checkpoint {path} can't be read: its header is not that of a run's state ({error!r}); an "
                "older version of fedpeft may have written it, so start a new run"
            ) from error

    @classmethod
    def _from_plain(cls, plain: dict[str, Any], tensors: State) -> ServerState:
        """Return the state that `to_bytes` has written."""
        of_clients = select_section(tensors, "clients")
        for name in OF_CLIENTS:
            plain[name] = _convert_to_mapping(select_section(of_clients, name))
        plain["forms"] = {int(client): AdapterShape(rank, alpha) for client, (rank, alpha) in plain["forms"].items()}
        plain["counters"] = Counters(**plain["counters"])
        plain["standing"] = SafeguardState(**plain["standing"])
        memory = select_section(tensors, "memory")
        return cls(
            adapter=select_section(tensors, "adapter"),
            started=select_section(tensors, "started"),
            memory={
                label: select_section(memory, label)
                for label in dict.fromkeys(name.partition("/")[0] for name in memory)
            },
            residual=Residual.from_tensors(select_section(tensors, "residual")),
            drift=unflatten_states(select_section(tensors, "drift")),
            versions=Versions.from_tensors(select_section(tensors, "versions")),
            told=select_section(tensors, "told"),
            learned=select_section(tensors, "learned"),
            best=BestState.from_tensors(select_section(tensors, "best")),
            in_flight=InFlight.from_tensors(select_section(tensors, "in_flight")),
            **plain,
        )


TENSORS = ("adapter", "started", "memory", "residual", "drift", "versions", "told", "best", "learned", "in_flight")
"""Attributes of a `ServerState` that a checkpoint holds as tensors."""


def _convert_to_arrays(numbers: Mapping[int, int]) -> State:
    """Return a number per client as tensors, in the order of the mapping."""
    return {
        "ids": torch.tensor(list(numbers), dtype=torch.int64),
        "values": torch.tensor(list(numbers.values()), dtype=torch.int64),
    }


def _convert_to_mapping(arrays: State) -> dict[int, int]:
    """Return what `_convert_to_arrays` was given."""
    return dict(zip(arrays["ids"].tolist(), arrays["values"].tolist(), strict=True))


def _compute_checksum(header: str, tensors: State) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run; the newest is kept, and the previous one until the newest is safe."""

    folder: Path

    def save(self, progress: ServerState) -> None:
        """Write the state of the server after a round.

        Raises:
            RunError: the disk is full or can't be written; the previous checkpoint stays valid.
        """
        try:
            files.make_private_folder(self.folder)
            file = self.folder / f"{progress.round + 1:06d}.safetensors"
            files.replace(file, progress.to_bytes(), private=True)
            for other in self.folder.iterdir():
                if other != file:
                    other.unlink()
        except OSError as error:
            raise RunError(f"FP5203 the checkpoint in {self.folder} can't be written: {error.strerror}") from error

    @property
    def exists(self) -> bool:
        """Whether there is a checkpoint."""
        return any(self.folder.glob("*.safetensors"))

    def load(self) -> ServerState | None:
        """Return the newest checkpoint; None: there is none.

        Raises:
            RunError: it can't be read.
        """
        found = sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else []
        return ServerState.read(found[-1]) if found else None


@dataclass(frozen=True)
class RunStore:
    """The files of a server.

    Attributes:
        records: the lines of rounds and clients.
        checkpoints: of its progress.
        bases: where clients on this machine read what has been put into the base.
        estimates: its copies of its clients' memories, if the uplink needs them (EF21).
        waiting: folder of updates that wait for a strategy that takes them all at once.
    """

    records: Records
    checkpoints: Checkpoints
    bases: ResidualFiles
    estimates: ClientStore
    waiting: Path

    @classmethod
    def from_records(cls, records: Records) -> RunStore:
        """Return the store in the folder of a run's records."""
        folder = records.folder
        return cls(
            records,
            Checkpoints(folder / "checkpoint"),
            ResidualFiles(folder / "base"),
            ClientStore(folder / "estimates"),
            folder / "waiting",
        )

    def restore(self, progress: ServerState | None) -> None:
        """Restore the other files as they were when `progress` was saved; None: remove their content."""
        self.records.cut(progress.offsets if progress else {})
        if progress is not None:
            self._tell(progress)
            self.bases.put(progress.residual.version, progress.residual.total)

    def commit(self, progress: ServerState) -> None:
        """Record a round: it counts, and is reported, once its checkpoint is on disk."""
        self.records.sync()
        self.checkpoints.save(replace(progress, offsets=self.records.get_offsets()))
        self._tell(progress)

    def _tell(self, progress: ServerState) -> None:
        for name, lines in progress.lines.items():
            self.records.append(name, *lines)

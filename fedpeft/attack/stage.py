"""A federation on loopback under attack: the real server, real clients in threads, and a grade of what was read.

Server and clients share a process. An attack replaces methods that only the attacker's side runs, or the answers of a
client by its name. `AttackStage.run` records what each honest client contributes to each sum, and finally compares it
with what the attacker holds.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
from flwr.app import Message

from fedpeft.attack.outcome import Outcome
from fedpeft.communication.messages import Instruction, Report
from fedpeft.data.rows import load_dataset
from fedpeft.deployment.client import joining
from fedpeft.deployment.client.edge import EdgeClient
from fedpeft.deployment.client.joining import Patience
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.deployment.identity.pinned_roster import PinnedRoster
from fedpeft.deployment.options import EdgeOptions, JoinOptions, ServeOptions
from fedpeft.deployment.server import serving
from fedpeft.deployment.server.event_log import Events
from fedpeft.deployment.server.federation import Federation
from fedpeft.deployment.server.grid import GrpcGrid, StoppedError
from fedpeft.deployment.wire.connection import Link, LostError
from fedpeft.errors import FedpeftError
from fedpeft.machine.terminal import Console
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.contribution import Contribution, Total
from fedpeft.privacy.secure_sum.sum import SecureSum, sums_in
from fedpeft.reporting.records import Records
from fedpeft.wiring.config import RunConfig

SECONDS: Final = 180.0
"""Seconds after which an attack that has not ended is undecided; events end all others."""

Answer = Callable[[EdgeClient, Instruction, Callable[[Instruction], Report]], Report]
"""Makes a hostile client's answer from its edge, its task and its honest software."""


Change = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes the attacker's method from the honest one."""


class ServerEndedError(Exception):
    """The federation has ended, so a client that has lost its connection need not look for the server."""


class LineObserver:
    """Observer that keeps the lines that the server prints for its user."""

    def __init__(self) -> None:
        """Start without lines."""
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)

    def round_done(self, _result: object) -> bool:
        """Return False, so that the run continues."""
        return False

    def __getattr__(self, _name: str) -> Callable[..., None]:
        """Return a function that ignores any other event."""
        return lambda *_given, **_named: None


@dataclass
class AttackStage:
    """One federation to attack.

    Attributes:
        folder: existing folder for its files.
        config: the server's settings, with the number of participating clients.
        options: the server's options.
        fewest: fewest clients of a sum that a client joins.
        pinned: whether clients pin a roster.
        hostile: answers of hostile clients, by name.
        patches: methods to replace during the run: their class, their name, and what makes the new one from the old
            one.
        held: vectors that the attacker holds, as floats, by round.
        over: set by an attack that has all it can get.
    """

    folder: Path
    config: RunConfig
    options: ServeOptions = field(default_factory=ServeOptions)
    fewest: int = FEWEST
    pinned: bool = True
    hostile: dict[str, Answer] = field(default_factory=dict)
    patches: list[tuple[type, str, Change]] = field(default_factory=list)
    held: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Name the clients, and prepare empty records."""
        self.names = [f"edge-{k}" for k in range(int(self.config.clients))]
        self.federation: Federation | None = None
        self.silent = ""  # digest of a model that does not learn
        self._given: dict[tuple[int, int], np.ndarray] = {}
        self._parts: list[np.ndarray | slice] = []
        self._refusals: dict[str, str] = {}
        self._sums = self._reports = 0
        self._timed_out = self._gathering = False
        self._gone: set[str] = set()  # clients that have ended
        self._crash: Exception | None = None
        self._joined: set[str] = set()
        self._one_by_one = threading.Lock()

    # ------------------------------------------------------------------------------------------------------ federation

    @property
    def certs(self) -> Path:
        """Folder of the certificates."""
        return self.folder / "certs"

    def replace(self, owner: type, name: str, change: Change) -> None:
        """Replace a method while the federation runs; `change` makes the new one from the old one."""
        self.patches.append((owner, name, change))

    def prepare(self) -> None:
        """Create certificates, a roster, and examples for each client."""
        authority = Authority(self.certs, 30)
        authority.ensure()
        authority.server(["127.0.0.1", "localhost"])
        for name in self.names:
            authority.client(name)
        roster = PinnedRoster.from_authority(self.certs)
        (self.folder / "roster.txt").write_text(roster.to_text())
        data = load_dataset(self.config.dataset)
        labels, classes, at = data.label_names or (), data.train.labels, 0
        assert classes is not None
        for k, name in enumerate(self.names):
            count = 40 + 10 * (k % 3)
            rows = [{"text": data.train.inputs[i], "label": labels[classes[i]]} for i in range(at, at + count)]
            at += count
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self) -> Outcome:
        """Run the federation until it ends, or until the server waits only for clients that have ended.

        Raises:
            FedpeftError: the settings can't be served, or an honest client can't join.
        """
        if not self.certs.exists():
            self.prepare()
        self.over.clear()
        self._gone.clear()
        observer, home = LineObserver(), self.folder / "server"
        home.mkdir(exist_ok=True)
        ours = {"certs": str(self.certs), "listen": "127.0.0.1:0", "patience": 0.0, "deadline": SECONDS, "quorum": 1.0}
        options = replace(self.options, **ours)  # type: ignore[arg-type]
        progress = None
        with contextlib.ExitStack() as stack:
            self._record(stack)
            self._stop_without_clients(stack)
            for owner, name, change in self.patches:
                stack.enter_context(patch.object(owner, name, change(getattr(owner, name))))
            credentials, doorkeeper, signer = serving.load_security(options)
            events = Events(home / "serve.jsonl", ignore_event)
            federation = Federation(self.config, home, observer, options, doorkeeper, events, signer)
            self.federation = federation
            stack.callback(federation.close)
            federation.gateway.start(options.listen, credentials)
            server = federation.server(Records(home, private=True))
            server.transport.grid.goes_on = True  # type: ignore[attr-defined]  # a stopped server ends at once
            clients = [threading.Thread(target=self._start_client, args=(name,), daemon=True) for name in self.names]
            for client in clients:
                client.start()
            threading.Thread(target=self._watch, args=(federation,), daemon=True).start()
            try:
                federation.gather()
                progress = federation.train(server)
            except StoppedError:
                pass
            except FedpeftError as error:
                self._refusals.setdefault("server", str(error))
            finally:
                self.over.set()
                federation.close(serving.FAREWELL)
                for client in clients:
                    client.join(SECONDS)
        if self._crash is not None:
            raise self._crash
        refusals, rounds = dict(self._refusals), self._count_rounds(home / "rounds.jsonl")
        timed_out = self._timed_out
        return Outcome(self._grade(), self._sums, self._reports, refusals, rounds, observer.lines, progress, timed_out)

    def _count_rounds(self, file: Path) -> tuple[int, int]:
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        norms = [line["update_norm"] for line in lines if line["round"]]
        return len(norms), sum(bool(norm) for norm in norms)

    # -------------------------------------------------------------------------------------------------------- clients

    def _start_client(self, name: str) -> None:
        assert self.federation is not None
        pinned = self.pinned and sums_in(self.config.privacy) is not None
        roster = str(self.folder / "roster.txt") if pinned else ""
        options = JoinOptions(
            server=f"127.0.0.1:{self.federation.gateway.port}",
            data=self.folder / f"{name}.jsonl",
            certs=self.certs / "clients" / name,
            state=self.folder / "state",
        )
        edge = EdgeOptions(device="cpu", threads=1, roster=roster, fewest=self.fewest)
        try:
            joining.join(options, edge, Console(quiet=True))
        except ServerEndedError:
            pass
        except Exception as error:
            if name not in self._joined or not isinstance(error, FedpeftError):  # not a refusal, so `run` raises it
                self._crash = error
            elif not self.over.is_set():
                self._refusals.setdefault(name, str(error))
        finally:
            self._gone.add(name)
            if self._gathering:  # the server would wait for this client
                self.federation.stopping.set()

    def _watch(self, federation: Federation) -> None:
        """Stop the server when the attack is over, or after the longest duration."""
        self._timed_out = not self.over.wait(SECONDS) or self._timed_out
        federation.stopping.set()

    def _stop_without_clients(self, stack: contextlib.ExitStack) -> None:
        """Stop the server when it waits only for clients that have ended, and clients when the server has ended."""
        pull, gather, retry = GrpcGrid.pull_messages, Federation.wait_for_present, Patience.wait_for_retry

        def pull_from_present(grid: GrpcGrid, messages: Iterable[str]) -> list[Message]:
            gone = set(self._gone)  # before the answers, since a client may end after its last one
            answers = pull(grid, messages)
            if not answers and grid.awaited_names and grid.awaited_names <= gone:
                grid.stopping.set()
            return answers

        def gather_present(federation: Federation) -> Sequence[int]:
            self._gathering = True
            if self._gone:
                federation.stopping.set()
            present = gather(federation)
            self._gathering = False
            return present

        def retry_before_end(patience: Patience, link: Link, error: LostError) -> None:
            if self.over.is_set():
                raise ServerEndedError
            retry(patience, link, error)

        stack.enter_context(patch.object(GrpcGrid, "pull_messages", pull_from_present))
        stack.enter_context(patch.object(Federation, "wait_for_present", gather_present))
        stack.enter_context(patch.object(Patience, "wait_for_retry", retry_before_end))

    # ----------------------------------------------------------------------------------------------------------- grade

    def _record(self, stack: contextlib.ExitStack) -> None:
        """Record each client's contribution and each sum, and let only one client work at a time."""
        integers, of, handle = Contribution.integers, Total.of.__func__, EdgeClient.handle  # type: ignore[attr-defined]
        begin = EdgeClient.__init__

        def record_contribution(
            given: Contribution,
            told: Announcement,
            secure: SecureSum,
            seed: int,
            round_number: int,
            client: int,
            *secret: Any,
        ) -> np.ndarray:
            if round_number:
                self._given[round_number, client] = flatten_update(given) * given.weight
                self._parts = [find_entries(given, "lora_"), slice(None)]
            return integers(given, told, secure, seed, round_number, client, *secret)

        def record_sum(cls: type[Total], content: np.ndarray, clients: int, *given: Any) -> Total:
            total: Total = of(cls, content, clients, *given)
            round_number = given[-1]
            if round_number:
                self._sums += 1
                self.held[round_number].append(total.vector)
            return total

        def handle_alone(edge: EdgeClient, instruction: Instruction) -> Report:
            name = edge.folder.name
            with self._one_by_one:
                lie = self.hostile.get(name)
                report = lie(edge, instruction, lambda i: handle(edge, i)) if lie else handle(edge, instruction)
            if report.error and not lie:
                self._refusals.setdefault(name, report.error)
            self._reports += bool(instruction.kind == "train" and not instruction.step and report.payload)
            return report

        def begin_alone(edge: EdgeClient, *given: Any) -> None:  # Python's parser is not safe in threads before 3.12
            with self._one_by_one:
                begin(edge, *given)
            self._joined.add(edge.folder.name)

        stack.enter_context(patch.object(EdgeClient, "__init__", begin_alone))
        stack.enter_context(patch.object(Contribution, "integers", record_contribution))
        stack.enter_context(patch.object(Total, "of", classmethod(record_sum)))
        stack.enter_context(patch.object(EdgeClient, "handle", handle_alone))

    def _grade(self) -> dict[str, float]:
        """Return the largest correlation of what the attacker holds with each honest client's update or adapter."""
        read: dict[str, float] = {}
        for (round_number, client), given in self._given.items():
            name = self.names[client]
            if name in self.hostile or not given.any():
                continue
            alike = [compute_correlation(held, given, part) for held in self.held[round_number] for part in self._parts]
            read[name] = max([read.get(name, 0.0), *alike])
        return read


def ignore_event(*_given: object) -> None:
    """Ignore an event, which the log contains."""


def flatten_update(given: Contribution) -> np.ndarray:
    """Return a client's update as one vector."""
    parts = [tensor.detach().double().numpy().ravel() for tensor in given.update.values()]
    return np.concatenate(parts) if parts else np.zeros(0)


def find_entries(given: Contribution, part: str) -> np.ndarray:
    """Return which entries of a client's update belong to tensors with this part in their names."""
    masks = [np.full(tensor.numel(), part in name) for name, tensor in given.update.items()]
    return np.concatenate(masks) if masks else np.zeros(0, bool)


def compute_correlation(one: np.ndarray, other: np.ndarray, part: np.ndarray | slice) -> float:
    """Return the cosine of a part of two vectors of equal length; 0 if they can't be compared."""
    if one.shape != other.shape or not one[part].any() or not other[part].any():
        return 0.0
    one, other = one[part], other[part]
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

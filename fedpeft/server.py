"""One federation, start to end: the file to read first.

    prepare   ask every client for statistics of its frozen features; the head starts from their sum
    round     sample a cohort, send each client the global adapter in its form, let it train,
              fold the updates in client order, let the server optimizer step, evaluate, record, checkpoint

The server talks to clients through a Flower `Grid` and knows nothing of how they run: the same loop drives a
simulation, a Ray cluster and real machines. After each round a checkpoint is written; a killed run continues from it
with identical results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from flwr.serverapp import Grid

from fedpeft.adapter import ClientForm, Layout, State, norm
from fedpeft.checkpoint import Checkpoints, Progress
from fedpeft.codec import Codec, decode
from fedpeft.errors import PayloadError, RunError
from fedpeft.flower import MESSAGE_TYPES, node_of
from fedpeft.head_start import HeadStart
from fedpeft.messages import Instruction, Report, report_of, to_record
from fedpeft.records import Records
from fedpeft.sampling import FixedSize
from fedpeft.server_optimizer import ServerOptimizer
from fedpeft.shelf import Shelf
from fedpeft.strategy import Fold, GatherStrategy, LinearStrategy, Strategy, Update, aggregate

WAVE = 128
"""Clients with an instruction outstanding at any time: bounds what waits to be folded in client order."""


COUNTERS = ("uplink_bytes", "downlink_bytes", "prepare_bytes", "uplink_updates", "round_seconds")
"""Running totals of a run; `prepare_bytes` is the part of `uplink_bytes` before round 1."""


@dataclass(frozen=True)
class Metrics:
    """What an evaluation found: mean loss per prediction and share of correct ones."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class RoundResult:
    """A finished round: what `rounds.jsonl` holds a line of.

    Losses are means over the cohort's rows; bytes are the lengths of real payloads; `update_norm` is the norm of the
    aggregated step; `seconds` includes evaluation, `training_seconds` does not.
    """

    round: int
    clients: int
    rejected: int
    train_loss: float | None
    loss: float | None
    accuracy: float | None
    uplink_bytes: int
    downlink_bytes: int
    update_norm: float
    training_seconds: float
    seconds: float


class Observer(Protocol):
    """Is told how a run goes on."""

    def started(self, rounds: int, done: int) -> None:
        """Before the first round that is still to do."""

    def client_done(self, phase: str, done: int, total: int) -> None:
        """A client of the running phase ("prepare" or "train") has answered."""

    def round_done(self, result: RoundResult) -> None:
        """A round is finished and recorded."""


@dataclass(frozen=True)
class Schedule:
    """The clients' learning rate over the rounds: constant, or falling to 0 linearly or as a cosine."""

    learning_rate: float
    rounds: int
    shape: str

    def at(self, round: int) -> float:
        """The learning rate of `round`, from 1."""
        progress = (round - 1) / self.rounds
        if self.shape == "linear":
            return self.learning_rate * (1 - progress)
        if self.shape == "cosine":
            return self.learning_rate * (1 + float(torch.cos(torch.tensor(progress * torch.pi)))) / 2
        return self.learning_rate


@dataclass
class Server:
    """The parts of a federation.

    Attributes:
        lossless: the codec of what is sent down.
        layout: all trainable tensors, at the global rank.
        start: the initial global state.
        weighting: "rows": p_k proportional to a client's rows; "uniform": equal.
        evaluate: metrics of a global state; None where nobody can know.
        evaluate_every: rounds between evaluations; the last round always is.
        fixed: what was probed at the start, kept in the checkpoint.
    """

    grid: Grid
    strategy: Strategy
    optimizer: ServerOptimizer
    lossless: Codec
    sampler: FixedSize
    schedule: Schedule
    head: HeadStart
    layout: Layout
    start: State
    clients: int
    classes: int
    seed: int
    rounds: int
    weighting: str
    evaluate: Callable[[State], Metrics | None]
    evaluate_every: int
    records: Records
    checkpoints: Checkpoints
    observer: Observer
    scratch: Path
    fixed: dict[str, object]

    def run(self) -> Progress:
        """All rounds that are still to do; returns the finished state."""
        self.strategy.check(self.layout, [self.layout.form])
        progress = self.checkpoints.load()
        self.records.cut(progress.offsets if progress else {})
        if progress is None:
            progress = self._prepare()
            self._commit(progress)
        self.observer.started(self.rounds, progress.round)
        for round in range(progress.round + 1, self.rounds + 1):
            result = self._round(round, progress)
            self.records.append("rounds.jsonl", asdict(result))
            self._commit(progress)
            self.observer.round_done(result)
        return progress

    def _commit(self, progress: Progress) -> None:
        progress.offsets = self.records.offsets()
        self.checkpoints.save(progress)

    # ------------------------------------------------------------------------------------------------- before round 1

    def _prepare(self) -> Progress:
        state = self.strategy.start(self.start, self.layout, self.seed)
        progress = Progress(round=0, adapter=state, fixed=dict(self.fixed))
        progress.counters = dict.fromkeys(COUNTERS, 0)
        if self.head.exchanges and "head.weight" in state:
            self._start_head(progress)
        progress.started = {name: tensor.clone() for name, tensor in progress.adapter.items()}
        return progress

    def _start_head(self, progress: Progress) -> None:
        state = progress.adapter
        started = time.perf_counter()
        width = state["head.weight"].shape[1]
        shapes = self.head.shapes(width, self.classes)
        total = Fold()
        instructions = (Instruction("prepare", 0, client, b"") for client in range(self.clients))
        for report in self._exchange(instructions, self.clients, "prepare"):
            total.add(decode(report.payload, shapes), 1.0)
            progress.counters["uplink_bytes"] += len(report.payload)
        progress.counters["prepare_bytes"] = progress.counters["uplink_bytes"]
        for name, tensor in self.head.solve(total.sums, width, self.classes).items():
            state[name] = tensor.to(state[name].dtype)
        prepared_at = time.perf_counter()
        metrics = self.evaluate(state)
        self.records.append(
            "rounds.jsonl",
            asdict(
                RoundResult(
                    round=0,
                    clients=self.clients,
                    rejected=0,
                    train_loss=None,
                    loss=metrics.loss if metrics else None,
                    accuracy=metrics.accuracy if metrics else None,
                    uplink_bytes=int(progress.counters["uplink_bytes"]),
                    downlink_bytes=0,
                    update_norm=0.0,
                    training_seconds=prepared_at - started,
                    seconds=time.perf_counter() - started,
                )
            ),
        )

    # ------------------------------------------------------------------------------------------------------- a round

    def _round(self, round: int, progress: Progress) -> RoundResult:
        started = time.perf_counter()
        state, layout = progress.adapter, self.layout
        cohort = self.sampler.draw(self.seed, round)
        sent = Downlink(self, state, round)
        collector = self._collector(round, state)
        lines: list[dict[str, object]] = []
        uplink = downlink = rejected = 0
        losses: list[tuple[float, int]] = []
        instructions = (self._instruction(client, round, sent, progress) for client in cohort)
        for report in self._exchange(instructions, len(cohort), "train"):
            form = layout.form
            shapes = layout.with_form(form).shapes
            downlink += len(sent.payload(form))
            uplink += len(report.payload)
            line: dict[str, object] = {
                "round": round,
                "client": report.client,
                "rows": report.rows,
                "steps": report.steps,
                "loss": report.loss,
                "seconds": report.seconds,
                "uplink_bytes": len(report.payload),
                "downlink_bytes": len(sent.payload(form)),
            }
            try:
                if report.error:
                    raise PayloadError(report.error)
                delta = decode(report.payload, shapes)
                if delta.keys() != sent.trained:
                    raise PayloadError(
                        f"an update of {len(delta)} tensors instead of the {len(sent.trained)} asked for"
                    )
                weight = float(report.rows) if self.weighting == "rows" else 1.0
                collector.add(Update(report.client, weight, form, sent.state(form), delta))
                progress.acknowledged[report.client] = round
                losses.append((report.loss, report.rows))
            except PayloadError as error:
                rejected += 1
                line["rejected"] = str(error)
            lines.append(line)
        if not losses:
            raise RunError(f"round {round}: none of {len(cohort)} clients returned a valid update; see clients.jsonl")
        after, progress.memory = collector.finish(progress.memory)
        progress.adapter = after
        trained_at = time.perf_counter()
        due = round == self.rounds or round % self.evaluate_every == 0
        metrics = self.evaluate(after) if due else None
        self.records.append("clients.jsonl", *lines)
        result = RoundResult(
            round=round,
            clients=len(cohort),
            rejected=rejected,
            train_loss=sum(loss * rows for loss, rows in losses) / sum(rows for _, rows in losses),
            loss=metrics.loss if metrics else None,
            accuracy=metrics.accuracy if metrics else None,
            uplink_bytes=uplink,
            downlink_bytes=downlink,
            update_norm=norm({name: after[name] - state[name] for name in state}),
            training_seconds=trained_at - started,
            seconds=time.perf_counter() - started,
        )
        progress.round = round
        progress.counters["uplink_bytes"] += uplink
        progress.counters["downlink_bytes"] += downlink
        progress.counters["uplink_updates"] += len(lines)
        progress.counters["round_seconds"] += result.seconds
        return result

    def _instruction(self, client: int, round: int, sent: Downlink, progress: Progress) -> Instruction:
        form = self.layout.form
        names = self.layout.names
        positions = tuple(i for i, name in enumerate(names) if name in sent.trained)
        return Instruction(
            kind="train",
            round=round,
            client=client,
            payload=sent.payload(form),
            learning_rate=self.schedule.at(round),
            rank=form.rank if form else 0,
            alpha=form.alpha if form else 0.0,
            trained=() if len(positions) == len(names) else positions,
            acknowledged=progress.acknowledged.get(client, 0),
        )

    def _collector(self, round: int, state: State) -> LinearCollector | GatherCollector:
        if isinstance(self.strategy, LinearStrategy):
            return LinearCollector(self, self.strategy, round, state)
        assert isinstance(self.strategy, GatherStrategy)
        return GatherCollector(self, self.strategy, round, state)

    # --------------------------------------------------------------------------------------------------- the exchange

    def _exchange(self, instructions: Iterable[Instruction], total: int, phase: str) -> Iterator[Report]:
        """Send the instructions, a wave at a time, and yield the reports in the order of the instructions."""
        done = 0
        for wave in _waves(instructions, WAVE):
            messages = [
                self.grid.create_message(to_record(i), MESSAGE_TYPES[i.kind], node_of(i.client), str(i.round))
                for i in wave
            ]
            waiting = set(self.grid.push_messages(messages))
            order = [i.client for i in wave]
            arrived: dict[int, Report] = {}
            following = 0
            while waiting:
                for message in self.grid.pull_messages(waiting):
                    waiting.discard(message.metadata.reply_to_message_id)
                    report = report_of(message)
                    arrived[report.client] = report
                    done += 1
                    self.observer.client_done(phase, done, total)
                while following < len(order) and order[following] in arrived:
                    yield arrived.pop(order[following])
                    following += 1


def _waves(instructions: Iterable[Instruction], size: int) -> Iterator[list[Instruction]]:
    wave: list[Instruction] = []
    for instruction in instructions:
        wave.append(instruction)
        if len(wave) == size:
            yield wave
            wave = []
    if wave:
        yield wave


class Downlink:
    """What is sent in a round: one payload per form, decoded again so that the server knows what clients start from."""

    def __init__(self, server: Server, state: State, round: int) -> None:
        self._server = server
        self._state = state
        self._round = round
        self._made: dict[ClientForm | None, tuple[bytes, State]] = {}
        self.trained = server.strategy.trained(server.layout, round)

    def _make(self, form: ClientForm | None) -> tuple[bytes, State]:
        if form not in self._made:
            layout = self._server.layout
            state = self._server.strategy.dispatch(self._state, layout, form, self._round)
            payload = self._server.lossless.encode(state)
            self._made[form] = payload, decode(payload, layout.with_form(form).shapes)
        return self._made[form]

    def payload(self, form: ClientForm | None) -> bytes:
        """The encoded state."""
        return self._make(form)[0]

    def state(self, form: ClientForm | None) -> State:
        """The state as the client decodes it."""
        return self._make(form)[1]


class LinearCollector:
    """Folds updates into a weighted mean as they come; the server optimizer steps along it."""

    def __init__(self, server: Server, strategy: LinearStrategy, round: int, state: State) -> None:
        self.server, self.strategy, self.round, self.state = server, strategy, round, state
        self.total = Fold()

    def add(self, update: Update) -> None:
        """Fold one update in."""
        self.strategy.fold(self.total, update, self.state, self.server.layout)

    def finish(self, memory: dict[str, State]) -> tuple[State, dict[str, State]]:
        """The next global state and optimizer memory."""
        direction = self.strategy.pseudo_gradient(self.total, self.server.layout)
        after, memory = self.server.optimizer.step(self.state, direction, memory)
        return self.strategy.finish(after, self.server.layout, self.round), memory


class GatherCollector:
    """Puts updates on disk as they come; the strategy then reads them one layer at a time."""

    def __init__(self, server: Server, strategy: GatherStrategy, round: int, state: State) -> None:
        self.server, self.strategy, self.round, self.state = server, strategy, round, state
        self.shelf = Shelf(server.scratch)

    def add(self, update: Update) -> None:
        """Put one update on the shelf."""
        self.shelf.put(update)

    def finish(self, memory: dict[str, State]) -> tuple[State, dict[str, State]]:
        """The next global state; the memory is unchanged."""
        made = aggregate(self.strategy, self.state, self.server.layout, self.shelf.read, self.round, self.server.seed)
        self.shelf.clear()
        return made.state, memory

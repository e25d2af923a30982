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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from flwr.serverapp import Grid

from fedpeft import seeds
from fedpeft.aggregation.aggregator import Collector, Outcome, collector
from fedpeft.aggregation.exactness import MeasuredCollector, WeightsCollector, measurable
from fedpeft.aggregation.head_start import HeadStart
from fedpeft.aggregation.server_optimizer import ServerOptimizer
from fedpeft.aggregation.strategy import Strategy
from fedpeft.aggregation.update import Fold, Update
from fedpeft.clients.store import ClientStore
from fedpeft.communication.base_residual import Residual, ResidualFiles
from fedpeft.communication.codec import Codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.downlink import Downlink, Package, Versions
from fedpeft.communication.messages import Instruction, Kind, Report
from fedpeft.communication.precision_rule import Situation
from fedpeft.communication.uplink import Uplink
from fedpeft.errors import PayloadError, RunError
from fedpeft.machine.memory import trim
from fedpeft.peft.adapter import ClientForm, Layout, State, held_in, norm
from fedpeft.peft.factor_view import Factoring
from fedpeft.peft.method import WeightChanges
from fedpeft.privacy.engine import Entry, Protection
from fedpeft.run.observer import Metrics, Observer, RoundResult
from fedpeft.run.profiles import Profile
from fedpeft.run.records import Records, plain
from fedpeft.server.acceptance import check_report, check_statistics, check_update
from fedpeft.server.evaluation import OwnRows, own_rows
from fedpeft.server.exchange import Exchange
from fedpeft.server.progress import Checkpoints, Progress
from fedpeft.server.sampling import Sampler

COUNTERS = (
    "uplink_bytes",
    "downlink_bytes",
    "prepare_bytes",
    "base_bytes",
    "uplink_parameters",
    "rejected",
    "round_seconds",
)
"""Running totals of a run.

`prepare_bytes` is the part of `uplink_bytes` before round 1, `base_bytes` the part of `downlink_bytes` that brings
clients' bases up to date, `uplink_parameters` counts the adapters' parameters of all updates, `rejected` the updates
left out.
"""


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


@dataclass(frozen=True)
class Dispatch:
    """What a client was sent, until it answers: the adapter, and the bytes of the base's residual and the variate."""

    package: Package
    base_bytes: int
    variate_bytes: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return len(self.package.payload) + self.base_bytes + self.variate_bytes


@dataclass
class Tally:
    """What a round's reports add up to."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    base_bytes: int = 0
    uplink_parameters: int = 0
    accepted: dict[int, int] = field(default_factory=dict)
    """Per client whose update was taken, the round that it was asked in."""
    losses: list[tuple[float, int]] = field(default_factory=list)
    forms: dict[int, ClientForm] = field(default_factory=dict)
    variates: Fold = field(default_factory=Fold)
    lines: list[dict[str, object]] = field(default_factory=list)
    spent: int = 0
    """Clients that refused because their privacy budgets are spent."""

    @property
    def train_loss(self) -> float:
        """The mean over the rows of the accepted clients."""
        return sum(loss * rows for loss, rows in self.losses) / sum(rows for _, rows in self.losses)


@dataclass
class Server:
    """The parts of a federation.

    Attributes:
        downlink: the codec of the adapter on its way down.
        lossless: of everything else that is sent down.
        uplink: of updates: codec, memory and precision rules.
        estimates: the server's copies of its clients' memories, where the uplink wants them (EF21).
        layout: all trainable tensors, at the global rank.
        start: the initial global state, which clients can make from the seed.
        profiles: of each client, in the order of ids.
        weighting: "rows": p_k proportional to a client's rows; "uniform": equal.
        proximal: mu of FedProx; 0: none.
        scaffold: whether clients correct their drift with control variates.
        evaluate: metrics of a global state on the base of a version; None: the server has no rows, and the global
            model is evaluated on the clients' own held-out rows, as far as there are any.
        bases: where clients on this machine read what has been put into the base.
        evaluate_every: rounds between evaluations; the last round always is.
        fixed: what was probed at the start, kept in the checkpoint.
        remote: whether clients are on other machines, and what goes into the base is sent to them.
        protection: the privacy mechanism at work; None: there is none.
        factoring: how the strategy sees the tensors, where they are not exchanged as factors.
        weight_changes: what a state changes in the base's weights, where aggregation is not exact and its error is
            recorded.
    """

    grid: Grid
    strategy: Strategy
    optimizer: ServerOptimizer
    downlink: Codec
    lossless: Codec
    uplink: Uplink
    estimates: ClientStore
    sampler: Sampler
    schedule: Schedule
    head: HeadStart
    layout: Layout
    start: State
    profiles: Sequence[Profile]
    classes: int
    seed: int
    rounds: int
    weighting: str
    proximal: float
    scaffold: bool
    evaluate: Callable[[State, int], Metrics | None] | None
    bases: ResidualFiles
    evaluate_every: int
    records: Records
    checkpoints: Checkpoints
    observer: Observer
    scratch: Path
    fixed: dict[str, object]
    remote: bool = False
    protection: Protection | None = None
    factoring: Factoring | None = None
    weight_changes: WeightChanges | None = None
    exchange: Exchange = field(init=False)
    residual: Residual = field(init=False)
    versions: Versions = field(init=False)
    dispatched: dict[int, Dispatch] = field(init=False, default_factory=dict)
    """By client, what it was sent and has not answered yet."""

    def __post_init__(self) -> None:
        self.exchange = Exchange(self.grid, self._answered)

    def run(self) -> Progress:
        """All rounds that are still to do; returns the finished state."""
        if not self.factoring:
            self.strategy.check(self.layout, [profile.form for profile in self.profiles])
        progress = self.checkpoints.load()
        if self.protection is not None:
            self.protection.open(resumed=progress is not None)
        self.records.cut(progress.offsets if progress else {})
        if progress is not None:
            self._tell(progress)
        self.residual = Residual.of(progress.residual if progress else {}, self.layout.pairs, self._dtype)
        self.bases.put(self.residual.version, self.residual.total)
        self.versions = Versions.of(progress.versions if progress else {})
        if progress is None:
            progress = self._prepare()
            self._commit(progress)
        self.observer.started(self.rounds, progress.round)
        for round in range(progress.round + 1, self.rounds + 1):
            entry = self._enter(round, progress)
            if entry is None:
                self.observer.say(f"the privacy budget is spent after {progress.round} rounds: the run ends here")
                break
            result = self._round(round, entry, progress)
            progress.lines["rounds.jsonl"] = [plain(asdict(result))]
            self._commit(progress)
            if self.observer.round_done(result):
                break
        return progress

    def _answered(self, phase: str, done: int, total: int) -> None:
        if not (self._secret_cohort and phase == "train"):
            self.observer.client_done(phase, done, total)

    @property
    def clients(self) -> int:
        """How many there are."""
        return len(self.profiles)

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self.start.values())).dtype

    def _commit(self, progress: Progress) -> None:
        """The round counts once its checkpoint is on the disk, and is told of only then."""
        self.records.sync()
        progress.offsets = self.records.offsets()
        self.checkpoints.save(progress)
        self._tell(progress)
        trim()

    def _tell(self, progress: Progress) -> None:
        for name, lines in progress.lines.items():
            self.records.append(name, *lines)

    # ------------------------------------------------------------------------------------------------- before round 1

    def _prepare(self) -> Progress:
        state = dict(self.start)
        progress = Progress(round=0, adapter=state, fixed=dict(self.fixed))
        progress.counters = dict.fromkeys(COUNTERS, 0)
        if self.head.exchanges and "head.weight" in state:
            self._start_head(progress)
        progress.started = {name: tensor.clone() for name, tensor in progress.adapter.items()}
        if self.scaffold:
            progress.variate = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        return progress

    def _start_head(self, progress: Progress) -> None:
        state = progress.adapter
        started = time.perf_counter()
        width = state["head.weight"].shape[1]
        total = Fold()
        instructions = (
            Instruction("prepare", 0, client, b"", base_precision=self.profiles[client].base)
            for client in range(self.clients)
        )
        rejected = 0
        for report in self.exchange.in_order(instructions, self.clients, "prepare"):
            progress.counters["uplink_bytes"] += len(report.payload)
            try:
                check_report(report)
                shapes = self.head.shapes(width, self.classes, report.rows)
                statistics = decode(report.payload, shapes)
                check_statistics(statistics, shapes, report.rows)
            except PayloadError:
                rejected += 1
                continue
            total.add(self.head.additive(statistics), 1.0)
            progress.rows[report.client] = report.rows
        if rejected == self.clients:
            raise RunError(f"none of {self.clients} clients returned valid statistics for the start of the head")
        progress.counters["prepare_bytes"] = progress.counters["uplink_bytes"]
        for name, tensor in self.head.solve(total.sums, width, self.classes).items():
            state[name] = tensor.to(state[name].dtype)
        prepared_at = time.perf_counter()
        metrics = self._evaluate(0, progress)
        result = RoundResult(
            round=0,
            clients=self.clients,
            rejected=rejected,
            train_loss=None,
            loss=metrics.loss if metrics else None,
            accuracy=metrics.accuracy if metrics else None,
            uplink_bytes=int(progress.counters["uplink_bytes"]),
            downlink_bytes=0,
            update_norm=0.0,
            training_seconds=prepared_at - started,
            seconds=time.perf_counter() - started,
        )
        progress.lines["rounds.jsonl"] = [plain(asdict(result))]

    # ------------------------------------------------------------------------------------------------------- a round

    def _enter(self, round: int, progress: Progress) -> Entry | None:
        """Who is asked; under privacy the round is charged first, and None means that no budget allows it."""
        if self.protection is None:
            return Entry(self.sampler.draw(self.seed, round))
        entry = self.protection.enter(round, progress)
        if entry is not None and entry.spent:
            clients = ", ".join(str(client) for client in entry.spent)
            self.observer.say(f"round {round}: the privacy budget of client {clients} is spent; it sits out")
        return entry

    def _round(self, round: int, entry: Entry, progress: Progress) -> RoundResult:
        started = time.perf_counter()
        state, cohort = progress.adapter, entry.cohort
        if self.strategy.asynchronous:
            cohort = self.exchange.idle(cohort, self.seed, round)
        sent = self._downlink(round, progress)
        total = self._collector(round, entry.attempt, progress)
        tally = Tally()
        aggregating = 0.0
        bits = self.uplink.bits(self._situation(cohort, progress))
        instructions = [
            replace(
                self._instruction("train", client, round, sent, progress),
                bits=bits.get(client, 0.0),
                attempt=entry.attempt,
            )
            for client in cohort
        ]
        for client in cohort:
            dispatch = self._dispatch(client, sent, progress)
            self.dispatched[client] = dispatch
            tally.downlink_bytes += dispatch.bytes
            tally.base_bytes += dispatch.base_bytes
        enough = self.strategy.asynchronous
        reports = (
            self.exchange.first(instructions, enough, "train")
            if enough
            else self.exchange.in_order(instructions, len(cohort), "train")
        )
        for report in reports:
            arrived = time.perf_counter()
            self._take(report, round, sent, total, tally, progress)
            aggregating += time.perf_counter() - arrived
        arrived = time.perf_counter()
        if tally.accepted or self._secret_cohort:  # an empty secret cohort takes its step of noise, too
            outcome = total.finish(progress.memory)
        else:
            if tally.spent < len(tally.lines):
                self._nobody(round, tally)
            outcome = Outcome(state, progress.memory)
        aggregating += time.perf_counter() - arrived
        progress.adapter, progress.memory = outcome.state, outcome.memory
        progress.clip = outcome.clip
        progress.forms |= tally.forms
        if tally.losses and not self._silent:
            progress.losses.append(tally.train_loss)
        progress.acknowledged |= tally.accepted
        progress.held |= {client: 0 if client in tally.forms else asked for client, asked in tally.accepted.items()}
        self.versions.add(round, sent.made, progress.held.values())
        progress.versions = self.versions.state()
        if self.scaffold and tally.accepted:  # c <- c + (1 / N) sum of the clients' changes
            share = tally.variates.weight / self.clients
            progress.variate |= {n: progress.variate[n] + share * d for n, d in tally.variates.mean().items()}
        self.residual.add(round, outcome.residuals)
        self.bases.put(self.residual.version, self.residual.total)
        progress.residual = self.residual.state()
        trained_at = time.perf_counter()
        due = round == self.rounds or round % self.evaluate_every == 0
        metrics = self._evaluate(round, progress) if due else None
        progress.lines = {"clients.jsonl": plain(tally.lines)}
        if self._secret_cohort:
            self._expect(tally, sent)
        result = RoundResult(
            round=round,
            clients=len(tally.lines),
            rejected=len(tally.lines) - len(tally.accepted),
            train_loss=None if self._silent or not tally.losses else tally.train_loss,
            loss=metrics.loss if metrics else None,
            accuracy=metrics.accuracy if metrics else None,
            uplink_bytes=tally.uplink_bytes,
            downlink_bytes=tally.downlink_bytes,
            update_norm=norm({name: outcome.state[name] - state[name] for name in state}),
            training_seconds=trained_at - started,
            seconds=time.perf_counter() - started,
            base_norm=sum(r.norm() ** 2 for r in outcome.residuals.values()) ** 0.5,
            worst_accuracy=metrics.worst_accuracy if metrics else None,
            aggregation_seconds=aggregating,
            aggregation_error=total.error(outcome)
            if isinstance(total, MeasuredCollector | WeightsCollector) and tally.accepted
            else None,
        )
        progress.counters["round_seconds"] += time.perf_counter() - started
        if self._secret_cohort:
            result = replace(
                result,
                clients=self._expected_cohort,
                rejected=0,
                training_seconds=None,
                seconds=None,
                aggregation_seconds=None,
            )
        progress.round = round
        for name in ("uplink_bytes", "downlink_bytes", "base_bytes", "uplink_parameters"):
            progress.counters[name] += getattr(tally, name)
        progress.counters["rejected"] += result.rejected
        return result

    def _expect(self, tally: Tally, sent: Downlink) -> None:
        """Count what the expected number of clients would have cost, whoever took part.

        An update is as long as one of random numbers, which for most codecs is exact.
        """
        share = self._expected_cohort / self.clients
        tally.uplink_bytes = tally.downlink_bytes = tally.base_bytes = tally.uplink_parameters = 0
        for form, count in Counter(profile.form for profile in self.profiles).items():
            layout, expected = self.layout.with_form(form), share * count
            dispatch = Dispatch(sent.package(form, 0, newcomer=False), len(sent.base(0)), len(sent.variate))
            draws = seeds.torch_generator(self.seed, "bytes of an update")
            update = {name: torch.randn(layout.shapes[name], generator=draws) for name in sorted(sent.shared)}
            update = {name: tensor.to(self._dtype) for name, tensor in update.items()}
            payload, _ = self.uplink.without_memory().encode(
                update, {}, bits=0.0, seed=self.seed, trained=update, layout=layout
            )
            tally.uplink_bytes += round(expected * len(payload))
            tally.downlink_bytes += round(expected * dispatch.bytes)
            tally.base_bytes += round(expected * dispatch.base_bytes)
            tally.uplink_parameters += round(expected * layout.numel)

    def _nobody(self, round: int, tally: Tally) -> None:
        """A round without an update: real clients that fail, or lie, must not end a federation of others for good.

        Raises:
            RunError: these were all clients that there are, or the run is a simulation.
        """
        failed = f"round {round}: none of {len(tally.lines)} clients returned a valid update"
        if not self.remote or len(tally.lines) == self.clients:
            self.records.append("clients.jsonl", *tally.lines)
            raise RunError(f"{failed}; see clients.jsonl")
        self.observer.say(f"{failed}; the model stays as it is")

    def _take(
        self, report: Report, round: int, sent: Downlink, total: Collector, tally: Tally, progress: Progress
    ) -> None:
        """Count what a client's part in the round has cost, and hand its update on if it is a valid one."""
        if self.protection is not None:
            self.protection.heard(report)
        tally.spent += report.spent
        last = progress.acknowledged.get(report.client, 0)
        form = self.form(report.client, progress)
        layout = self.layout.with_form(form)
        dispatch = self.dispatched.pop(report.client)
        received = held_in(dispatch.package.state, self.profiles[report.client].adapter)
        tally.uplink_bytes += report.bytes
        tally.uplink_parameters += layout.numel if report.payload else 0
        line: dict[str, object] = {
            "round": report.round,
            "client": report.client,
            "rank": form.rank if form else None,
            "rows": None if self._silent else report.rows,
            "steps": report.steps,
            "loss": None if self._silent else report.loss,
            "seconds": report.seconds,
            "uplink_bytes": report.bytes,
            "downlink_bytes": dispatch.bytes,
            "downlink_from": dispatch.package.base,
            "base_precision": self.profiles[report.client].base or None,
        }
        if self.protection is not None:
            line["confidential"] = True
        if self.strategy.asynchronous:
            line["staleness"] = round - report.round
        tally.lines.append(line)
        try:
            check_report(report)
            memory = self._estimate(report.client, last)
            delta, memory = self.uplink.receive(report.payload, layout.shapes, memory)
            check_update(delta, received, sent.shared)
            variate = self._variate(report, layout, sent, progress)
        except PayloadError as error:
            line["rejected"] = str(error)
            if not report.spent:
                progress.rejections[report.client] = progress.rejections.get(report.client, 0) + 1
            return
        progress.rows[report.client] = report.rows
        weight = float(report.rows) if self.weighting == "rows" else 1.0
        if self.uplink.server_remembers:
            self.estimates.stage(report.client, report.round, memory)
        update = Update(report.client, weight, form, received, delta, staleness=round - report.round)
        total.add(update)
        tally.variates.add(variate, 1.0)
        after = self.strategy.next_form(update, self.layout)
        if after is not None and after != form:
            tally.forms[report.client] = after
        tally.accepted[report.client] = report.round
        tally.losses.append((report.loss, report.rows))

    def _variate(self, report: Report, layout: Layout, sent: Downlink, progress: Progress) -> State:
        """The change of a client's control variate, checked as an update is; empty without SCAFFOLD."""
        if not self.scaffold:
            return {}
        change = decode(report.variate, {name: layout.shapes[name] for name in sent.shared})
        check_update(change, progress.variate, sent.shared)
        return change

    def _estimate(self, client: int, last: int) -> State:
        """The server's copy of a client's memory, after round `last`."""
        return self.estimates.load(client, last) or {} if self.uplink.server_remembers else {}

    def _situation(self, cohort: Sequence[int], progress: Progress) -> Situation:
        """What precision rules go by; clients whose rows are not known yet count as average ones."""
        known = list(progress.rows.values()) or [1]
        average = sum(known) / len(known)
        weighted = self.weighting == "rows"
        return Situation(
            losses=progress.losses,
            weights={k: float(progress.rows.get(k, average)) if weighted else 1.0 for k in cohort},
            speeds={k: self.profiles[k].link for k in cohort},
        )

    def form(self, client: int, progress: Progress) -> ClientForm | None:
        """LoRA rank and alpha of a client, as they are now."""
        return progress.forms.get(client, self.profiles[client].form)

    def _downlink(self, round: int, progress: Progress) -> Downlink:
        variate = progress.variate if self.scaffold else None
        return Downlink(
            self.strategy,
            self.layout,
            self.downlink,
            self.lossless,
            progress.adapter,
            self.start,
            self.versions,
            self.residual,
            round,
            variate,
        )

    def _dispatch(self, client: int, sent: Downlink, progress: Progress) -> Dispatch:
        last = progress.acknowledged.get(client, 0)
        package = sent.package(self.form(client, progress), progress.held.get(client, 0), newcomer=not last)
        return Dispatch(package, len(sent.base(last)), len(sent.variate))

    def _instruction(self, kind: Kind, client: int, round: int, sent: Downlink, progress: Progress) -> Instruction:
        form = self.form(client, progress)
        last = progress.acknowledged.get(client, 0)
        return Instruction(
            kind=kind,
            round=round,
            client=client,
            payload=sent.package(form, progress.held.get(client, 0), newcomer=not last).payload,
            learning_rate=self.schedule.at(round),
            proximal=self.proximal,
            rank=form.rank if form else 0,
            alpha=form.alpha if form else 0.0,
            trained=() if len(sent.trained) == len(self.layout.names) else self._positions(sent.trained),
            acknowledged=last,
            private=self._positions(sent.private),
            steps=self.profiles[client].steps,
            base_precision=self.profiles[client].base,
            adapter_precision=self.profiles[client].adapter,
            base=self.residual.version,
            variate=sent.variate,
            residual=sent.base(last) if self.remote else b"",
        )

    def _positions(self, names: frozenset[str]) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(self.layout.names) if name in names)

    @property
    def _secret_cohort(self) -> bool:
        """Whether nobody may know who takes part in a round, nor how many do; an empty cohort is one, too."""
        return self.protection is not None and self.protection.mechanism.secret_cohort

    @property
    def _expected_cohort(self) -> int:
        """q N, which everyone may know."""
        assert self.protection is not None
        return self.protection.federation.cohort

    @property
    def _silent(self) -> bool:
        """Whether clients report nothing that they have measured on their rows."""
        return self.protection is not None and self.protection.mechanism.silent

    def _collector(self, round: int, attempt: int, progress: Progress) -> Collector:
        state = progress.adapter
        if self.protection is not None:
            private = self.protection.collector(
                self.strategy, self.optimizer, self.layout, state, round, attempt, progress.clip
            )
            if private is not None:
                return private
        total = collector(
            self.strategy, self.optimizer, self.layout, state, round, self.seed, self.scratch, self.factoring
        )
        if self.weight_changes and not self.strategy.private(self.layout):
            return WeightsCollector(total, self.weight_changes)
        return MeasuredCollector(total, self.layout) if measurable(self.strategy, self.layout) else total

    # ---------------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self, round: int, progress: Progress) -> Metrics | None:
        """The global model on held-out rows; where clients keep tensors of their own, each client on its own rows."""
        if self.evaluate and not self.strategy.private(self.layout):
            return self.evaluate(progress.adapter, self.residual.version)
        own = self.own_rows(round, progress)
        if not own.clients:
            return None
        if self.strategy.private(self.layout):
            return Metrics(own.loss, own.accuracy, own.worst_accuracy)
        return Metrics(own.pooled_loss, own.pooled_accuracy, own.worst_accuracy)

    def own_rows(self, round: int, progress: Progress) -> OwnRows:
        """Each client's model on its own held-out rows. What this sends serves measurement and is not counted."""
        sent = self._downlink(round + 1, progress)
        instructions = (self._instruction("evaluate", client, round, sent, progress) for client in range(self.clients))
        return own_rows(list(self.exchange.in_order(instructions, self.clients, "evaluate")))

"""What the server takes of its clients' reports: the others are left out of the round and counted as rejected.

Whatever the strategy, numbers that are not finite, or that no training could have made, would spoil the global model
for everyone; so they are dropped before any rule sees them. What is merely hostile is the robust rules' business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Final

from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.aggregation.factors import place_ranks
from fedpeft.aggregation.head_start import VARIANCE
from fedpeft.aggregation.strategy import Strategy
from fedpeft.aggregation.update import Fold, Update
from fedpeft.clients.drift import Drift, States
from fedpeft.clients.store import ClientStore
from fedpeft.communication.downlink import SentState
from fedpeft.communication.messages import LOST, MOST_STEPS, Report
from fedpeft.communication.payload import Shape
from fedpeft.communication.uplink import Uplink
from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import AdapterShape, Layout, State, compute_norm
from fedpeft.privacy.secure_sum.contribution import LOSS_ROUNDING

ABSURD = 1000.0
"""An update may be this many times as long as 1 + the norm of what the client was sent; honest ones stay below 1."""

DECODED = 256 << 20
"""Bytes of decoded updates that wait for their turn; what comes beyond them is decoded when it is."""

MOST_JOULES = 1e9
"""That a client may say a round has taken: 278 kWh."""

WORST_LOSS = 1e6
"""A mean loss above this one is a training that has diverged, or a lie that would hide the others' losses."""

MOST_TIMES: Final = 100.0
"""A training loss counts as at most this many times the cohort's median or 1, whichever is larger."""


def assume_all_trained(round_number: int, client: int, steps: int) -> State:
    """A client has trained all that it holds, in every step."""
    return {}


def check_report(report: Report, least_loss: float = 0.0) -> None:
    """Refuse a report that says of itself that it failed, or whose numbers make no sense.

    Args:
        report: a client's.
        least_loss: `Task.least_loss`.

    Raises:
        PayloadError: why.
    """
    report.raise_error()
    if report.rows < 1:
        raise PayloadError(f"FP6148 an update from {report.rows} rows")
    if not 0 <= report.used <= report.rows:
        raise PayloadError(f"FP6149 {report.used} distinct rows trained on, of {report.rows}")
    if not 0 <= report.steps <= MOST_STEPS or not 0 <= report.seconds < math.inf:
        raise PayloadError(f"FP6150 {report.steps} steps in {report.seconds:g} s")
    if not 0 <= report.joules <= MOST_JOULES:
        raise PayloadError(f"FP6151 {report.joules:g} joules of energy; nothing above {MOST_JOULES:g} is taken")
    if not abs(report.loss) <= WORST_LOSS:
        raise PayloadError(f"FP6152 a training loss of {report.loss}: the client's training has diverged")
    if report.loss < least_loss - LOSS_ROUNDING:
        raise PayloadError(f"FP6191 a mean loss of {report.loss:g}; no loss of this task is below {least_loss:g}")


def describe_rejection(called: str, reason: str) -> str:
    """Why nothing of a client was taken, for a sentence on a terminal: some of it may be a stranger's words."""
    said = "".join(letter if letter.isprintable() else " " for letter in reason)
    return f"{called}: {said[:200]}"


def check_evaluation(report: Report, predictions: int, numbers: bool = False, least_loss: float = 0.0) -> None:
    """Refuse an evaluation that no rows can have led to; `predictions` is the most that a row can have.

    Of `numbers`, what is right is 1 - squared error of each row, and may be below 0.

    Raises:
        PayloadError: why.
    """
    check_report(report, least_loss)
    least = -WORST_LOSS * report.count if numbers else 0
    if not least <= report.correct <= report.count <= report.rows * predictions:
        raise PayloadError(
            f"FP6153 {report.correct:g} of {report.count:g} predictions are right, of {report.rows} rows"
        )


def check_statistics(statistics: State, shapes: Mapping[str, Shape], rows: int) -> None:
    """Refuse statistics for the head's start that are not those asked for, or that no `rows` rows can have.

    They are sums over rows of products of features, so nothing above rows x the square of an absurdly long feature.

    Raises:
        PayloadError: why.
    """
    if statistics.keys() != shapes.keys():
        raise PayloadError(f"FP6154 statistics called {sorted(statistics)} instead of {sorted(shapes)}")
    if VARIANCE in statistics and not float(statistics[VARIANCE]) >= 0:
        raise PayloadError(f"FP6155 noise of variance {float(statistics[VARIANCE]):g}")
    length, limit = compute_norm(statistics), rows * ABSURD**2
    if not length <= limit:
        raise PayloadError(
            f"FP6156 statistics of norm {length:.3g}; nothing above {limit:.3g} is taken from {rows} rows"
        )


def check_update(delta: State, received: State, asked: frozenset[str]) -> None:
    """Refuse an update, or a change of a drift correction's state, that holds other tensors than `asked`, is not
    finite, or is absurdly large against what the client `received`.

    Raises:
        PayloadError: why.
    """
    if delta.keys() != asked:
        raise PayloadError(f"FP6157 an update of {len(delta)} tensors instead of the {len(asked)} asked for")
    length = compute_norm(delta)
    limit = ABSURD * (1 + compute_norm(received))
    if not length <= limit:
        raise PayloadError(f"FP6158 an update of norm {length:.3g}; nothing above {limit:.3g} is taken")


def check_widths(delta: State, received: State) -> None:
    """Refuse an update whose numbers are of another width than those that the client `received`.

    A payload says itself how wide its numbers are, and those of one client must not decide how a sum is rounded.

    Raises:
        PayloadError: which they are.
    """
    for name, tensor in delta.items():
        if tensor.dtype != received[name].dtype:
            raise PayloadError(f"FP6159 {name} is {tensor.dtype}; it was sent as {received[name].dtype}")


@dataclass(frozen=True)
class ClientResult:
    """A client's part in a round: what `clients.jsonl` holds a line of.

    Attributes:
        round: that it was asked in.
        client: its id; of real clients roster.json has the names.
        rank: of its LoRA factors; None: it has none.
        rows, loss: None where clients report nothing that they have measured on their rows.
        steps, seconds: None where they say nothing of their work.
        downlink_from: the version that the payload builds on; 0: the start; None: nothing.
        base_precision: None: the run's own.
        confidential: in runs with privacy.
        staleness: steps that the server has taken since it asked; None: in synchronous rounds.
        rejected: why the update was left out; None: it was taken.
        used: distinct rows that the client has trained on up to now; None where it does not say.
        joules: of training, waiting, and traffic up and down (`fedpeft.wiring.energy`); None: nobody counts.
        measured: joules of training that the client has measured itself; None: it has not.
    """

    round: int
    client: int
    rank: int | None
    rows: int | None
    steps: int | None
    loss: float | None
    seconds: float | None
    uplink_bytes: int
    downlink_bytes: int
    downlink_from: int | None
    base_precision: str | None
    confidential: bool | None = None
    staleness: int | None = None
    rejected: str | None = None
    used: int | None = None
    joules: Mapping[str, float] | None = None
    measured: float | None = None

    def line(self) -> dict[str, Any]:
        """As a line of JSON; the last six only where they say something."""
        optional = ("confidential", "staleness", "rejected", "used", "joules", "measured")
        return {name: value for name, value in asdict(self).items() if value is not None or name not in optional}


@dataclass
class ClientAnswers:
    """Those of each client, how many count, and what asking and answering cost in bytes."""

    by_client: dict[int, State] = field(default_factory=dict)
    clients: int = 0
    downlink_bytes: int = 0
    uplink_bytes: int = 0


@dataclass(frozen=True)
class DecodedReport:
    """A report, checked and decoded: its update and the server's copy of the client's memory, or why it is refused."""

    update: Update | None = None
    memory: State = field(default_factory=dict)
    changes: States = field(default_factory=dict)
    refused: str = ""

    @property
    def bytes(self) -> int:
        """Of what it holds beside what the client was sent."""
        states = (self.update.delta if self.update else {}, self.memory, *self.changes.values())
        return sum(tensor.nbytes for state in states for tensor in state.values())


def ignore_report(report: Report) -> None:
    """Take no note of a report."""


@dataclass
class ReportReceiver:
    """Takes a round's reports: checks and decodes each, and hands its update on; says why it refuses one.

    Attributes:
        round: of the server.
        layout: of the trainable tensors, at the global rank.
        shared: names of the tensors that updates hold.
        strategy: may change the form of a client whose update is taken.
        uplink: how updates are encoded.
        aggregator: takes the updates.
        by_rows: whether p_k is proportional to a client's rows, or else equal.
        most_rows: a client with more of them weighs as if it had so many.
        reported: is called with each report, valid or not.
        confidential: whether the run has privacy.
        silent: whether losses and numbers of examples are secret.
        estimates: the server's copies of its clients' memories, where the uplink wants them.
        drift: the corrections of the clients' drift.
        states: of the server's drift corrections, as clients were sent them.
        results: of each report.
        accepted: per client whose update was taken, the round that it was asked in.
        rejected: the clients whose update was not.
        spent: how many refused because their privacy budgets are spent.
        forms: that clients have from now on, where they change.
        rows: of each client whose update was taken.
        owned: of a round, a client and its steps, what of its update it has trained
            (`PeftMethod.compute_owned_shares`).
        uplink_parameters: of all updates.
        passed_on: bytes of what members of a secure sum say to each other, on their way down.
        answers: to what the rule has asked each client before it trained; None: nothing.
        least_loss: see `Task`.
    """

    round: int
    layout: Layout
    shared: frozenset[str]
    strategy: Strategy
    uplink: Uplink
    aggregator: Aggregator
    by_rows: bool = False
    most_rows: float = math.inf
    reported: Callable[[Report], None] = ignore_report
    confidential: bool = False
    silent: bool = False
    estimates: ClientStore | None = None
    drift: Drift = field(default_factory=Drift)
    states: States = field(default_factory=dict)
    results: list[ClientResult] = field(default_factory=list)
    accepted: dict[int, int] = field(default_factory=dict)
    rejected: list[int] = field(default_factory=list)
    spent: int = 0
    forms: dict[int, AdapterShape] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)
    owned: Callable[[int, int, int], State] = assume_all_trained
    uplink_parameters: int = 0
    passed_on: int = 0
    answers: ClientAnswers | None = None
    least_loss: float = 0.0
    _losses: dict[int, tuple[float, float]] = field(default_factory=dict)
    _changes: dict[str, Fold] = field(default_factory=dict)
    _decoded: dict[int, DecodedReport] = field(default_factory=dict)
    _waiting: int = 0  # bytes of what is decoded

    def create_early_decoder(
        self, sent: Mapping[int, SentState], working: AbstractContextManager[None]
    ) -> Callable[[Report], None]:
        """What decodes a report of a client that was `sent` something before it is its turn to be added, while others
        are still awaited; `working` goes around it."""

        def decode(report: Report) -> None:
            if self._waiting < DECODED:
                with working:
                    decoded = self._decode(report, sent[report.client])
                self._waiting += decoded.bytes
                self._decoded[report.client] = decoded

        return decode

    def _decode(self, report: Report, sent: SentState) -> DecodedReport:
        layout = self.layout.replace_form(sent.instruction.form)
        try:
            update, memory = self._update(report, sent, layout)
            return DecodedReport(update, memory, self._decode_drift_changes(report, layout))
        except PayloadError as error:
            return DecodedReport(refused=str(error))

    def add(self, report: Report, sent: SentState) -> Update | None:
        """Take the report of a client on what it was `sent`; returns its update, None where it is left out."""
        self.reported(report)
        self.spent += report.spent
        self.uplink_parameters += self.layout.replace_form(sent.instruction.form).numel if report.payload else 0
        result = self._result(report, sent)
        decoded = self._decoded.pop(report.client, None)
        self._waiting -= decoded.bytes if decoded is not None else 0
        decoded = decoded or self._decode(report, sent)
        update = decoded.update
        if update is None:
            self.results.append(replace(result, rejected=decoded.refused))
            if not report.spent:
                self.rejected.append(report.client)
            return None
        self.results.append(result)
        if self.estimates is not None and self.uplink.has_server_memory:
            self.estimates.stage(report.client, report.round, decoded.memory)
        self.aggregator.add(update)
        for correction, change in decoded.changes.items():
            self._changes.setdefault(correction, Fold()).add(change, 1.0)
        after = self.strategy.next_form(update, self.layout)
        if after is not None and after != update.form:
            self.forms[report.client] = after
        self.accepted[report.client] = report.round
        self.rows[report.client] = report.rows
        self._losses[report.client] = report.loss, min(report.rows, self.most_rows)
        return update

    def add_mean(self, update: Update, loss: float, rows: float, clients: Sequence[int]) -> None:
        """Take the weighted mean of these clients' updates, of which nothing else is known but their loss and rows."""
        self.aggregator.add(update)
        self.accepted |= dict.fromkeys(clients, self.round)
        self.uplink_parameters += len(clients) * self.layout.numel
        if not math.isnan(loss):  # of losses that can't be
            self._losses[clients[0]] = loss, rows

    @property
    def lost(self) -> set[int]:
        """The clients that have nothing left of earlier rounds."""
        return {result.client for result in self.results if result.rejected == LOST}

    def explain_rejections(self, called: Callable[[int], str]) -> str:
        """Why nothing of the first client that was left out has been taken, by what it is `called`, and how many others
        were; empty: none was."""
        left = [result for result in self.results if result.rejected]
        others = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        return describe_rejection(called(left[0].client), left[0].rejected or "") + others if left else ""

    def _result(self, report: Report, sent: SentState) -> ClientResult:
        asked = sent.instruction
        return ClientResult(
            round=report.round,
            client=report.client,
            rank=asked.rank or None,
            rows=None if self.silent else report.rows,
            steps=report.steps,
            loss=None if self.silent else report.loss,
            seconds=report.seconds,
            uplink_bytes=report.bytes,
            downlink_bytes=sent.bytes,
            downlink_from=sent.package.base,
            base_precision=asked.base_precision or None,
            confidential=True if self.confidential else None,
            staleness=self.round - report.round if self.strategy.asynchronous else None,
            used=None if self.silent else report.used or None,
            measured=None if self.silent else report.joules or None,
        )

    def _update(self, report: Report, sent: SentState, layout: Layout) -> tuple[Update, State]:
        """The update, and the server's copy of the client's memory."""
        check_report(report, self.least_loss)
        memory: State = {}
        if self.estimates is not None and self.uplink.has_server_memory:
            memory = self.estimates.load(report.client, sent.instruction.acknowledged) or {}
        delta, memory = self.uplink.receive(report.payload, layout.shapes, memory)
        received, ranks, form = sent.state, sent.package.ranks, sent.instruction.form
        if (held := self.strategy.held_form(self.layout, form)) != form:
            delta, form = place_ranks(delta, self.layout, ranks), held
        check_update(delta, received, self.shared)
        check_widths(delta, received)
        answer: State = {}
        if self.answers is not None:
            if report.client not in self.answers.by_client:
                raise PayloadError("FP6160 an update of a client that has not answered what the rule asks of it")
            answer = self.answers.by_client[report.client]
        weight = float(min(report.rows, self.most_rows)) if self.by_rows else 1.0
        staleness = self.round - report.round
        owned = self.owned(report.round, report.client, report.steps) if self.strategy.counts_owned else {}
        return Update(report.client, weight, form, received, delta, staleness, ranks, owned, answer), memory

    def _decode_drift_changes(self, report: Report, layout: Layout) -> States:
        """The changes of the states of a client's drift corrections, checked as an update is, as wide as the states."""
        made: dict[str, State] = {}
        sent = self.drift.decode(report.correction, {name: layout.shapes[name] for name in self.shared})
        for correction, change in sent.items():
            state = self.states[correction]
            check_update(change, state, self.shared)
            made[correction] = {name: tensor.to(state[name].dtype) for name, tensor in change.items()}
        return made

    @property
    def train_loss(self) -> float | None:
        """The mean over the rows of the accepted clients; None: there are none, or they don't tell.

        A loss above `most_loss` counts as `most_loss`.
        """
        if self.silent or not self._losses:
            return None
        losses, most = self._losses.values(), self.most_loss
        return sum(min(loss, most) * rows for loss, rows in losses) / sum(rows for _, rows in losses)

    @property
    def most_loss(self) -> float:
        """The largest loss that counts, by the median of the accepted clients' losses; see `MOST_TIMES`."""
        return MOST_TIMES * max(1.0, median(loss for loss, _ in self._losses.values()))

    @property
    def overstated(self) -> dict[int, float]:
        """The losses above `most_loss`, by client."""
        if self.silent or not self._losses:
            return {}
        most = self.most_loss
        return {client: loss for client, (loss, _) in self._losses.items() if loss > most}

    def compute_next_drift(self, clients: int) -> States:
        """The states of the server's drift corrections after the round, of a run with so many clients."""
        return self.drift.step(self.states, self._changes, clients) if self.accepted else self.states

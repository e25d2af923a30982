"""Checks of clients' reports: refused ones are left out of the round and counted as rejected.

Numbers that are not finite, or that no training could have made, would spoil the global model under any strategy. So
they are dropped before a strategy sees them. Updates that are merely hostile are left to the robust strategies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Final

from fedpeft.aggregation.abilities import AdjustsRanks, Buffered
from fedpeft.aggregation.aggregator import Aggregator
from fedpeft.aggregation.factors import place_ranks
from fedpeft.aggregation.head_start import VARIANCE
from fedpeft.aggregation.owned_ranks import get_held_form
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
"""Largest accepted norm of an update, over 1 + the norm of what the client received; honest ones stay below 1."""

DECODED = 256 << 20
"""Bytes of decoded updates that wait for their turn; further updates are decoded when their turn comes."""

MOST_JOULES = 1e9
"""Most joules that a client may report for a round: 278 kWh."""

WORST_LOSS = 1e6
"""Largest accepted mean loss. Above it, training has diverged, or the client lies to hide the others' losses."""

MOST_TIMES: Final = 100.0
"""A training loss counts as at most this many times the cohort's median or 1, whichever is larger."""


def assume_all_trained(round_number: int, client: int, steps: int) -> State:
    """Return no tensors: the client has trained all that it holds, in every step."""
    return {}


def check_report(report: Report, least_loss: float = 0.0) -> None:
    """Refuse a report that states its own failure, or whose numbers are impossible.

    Args:
        report: a client's report.
        least_loss: `Task.least_loss`.

    Raises:
        PayloadError: names the failure, or the impossible number.
    """
    report.raise_error()
    if report.rows < 1:
        raise PayloadError(f"FP6148 an update from {report.rows} examples")
    if not 0 <= report.used <= report.rows:
        raise PayloadError(f"FP6149 {report.used} distinct examples trained on, of {report.rows}")
    if not 0 <= report.steps <= MOST_STEPS or not 0 <= report.seconds < math.inf:
        raise PayloadError(f"FP6150 {report.steps} steps in {report.seconds:g} s")
    if not 0 <= report.joules <= MOST_JOULES:
        raise PayloadError(f"FP6151 {report.joules:g} joules of energy; nothing above {MOST_JOULES:g} is taken")
    if not abs(report.loss) <= WORST_LOSS:
        raise PayloadError(f"FP6152 a training loss of {report.loss}: the client's training has diverged")
    if report.loss < least_loss - LOSS_ROUNDING:
        raise PayloadError(f"FP6191 a mean loss of {report.loss:g}; no loss of this task is below {least_loss:g}")


def describe_rejection(called: str, reason: str) -> str:
    """Return a terminal sentence about why a client's report was refused, without control characters.

    Part of the reason may come from the client.
    """
    said = "".join(letter if letter.isprintable() else " " for letter in reason)
    return f"{called}: {said[:200]}"


def check_evaluation(report: Report, predictions: int, numbers: bool = False, least_loss: float = 0.0) -> None:
    """Refuse an evaluation that no examples can have led to.

    Args:
        report: a client's report.
        predictions: the most predictions that one example can have.
        numbers: whether the task predicts numbers. `correct` is then the sum of 1 - squared error and may be negative.
        least_loss: `Task.least_loss`.

    Raises:
        PayloadError: names the impossible number.
    """
    check_report(report, least_loss)
    least = -WORST_LOSS * report.count if numbers else 0
    if not least <= report.correct <= report.count <= report.rows * predictions:
        raise PayloadError(
            f"FP6153 {report.correct:g} of {report.count:g} predictions are right, of {report.rows} examples"
        )


def check_statistics(statistics: State, shapes: Mapping[str, Shape], rows: int) -> None:
    """Refuse statistics for the head's start that were not asked for, or that `rows` examples can't have.

    They are sums over examples of products of features. So their norm is at most `rows` times the square of an absurdly
    long feature.

    Raises:
        PayloadError: names what is wrong with them.
    """
    if statistics.keys() != shapes.keys():
        raise PayloadError(f"FP6154 statistics called {sorted(statistics)} instead of {sorted(shapes)}")
    if VARIANCE in statistics and not float(statistics[VARIANCE]) >= 0:
        raise PayloadError(f"FP6155 noise of variance {float(statistics[VARIANCE]):g}")
    length, limit = compute_norm(statistics), rows * ABSURD**2
    if not length <= limit:
        raise PayloadError(
            f"FP6156 statistics of norm {length:.3g}; nothing above {limit:.3g} is taken from {rows} examples"
        )


def check_update(delta: State, received: State, asked: frozenset[str]) -> None:
    """Refuse an update, or a change of a drift correction's state, that can't be one.

    It holds other tensors than `asked`, is not finite, or is absurdly large compared with what the client `received`.

    Raises:
        PayloadError: names what is wrong with it.
    """
    if delta.keys() != asked:
        raise PayloadError(f"FP6157 an update of {len(delta)} tensors instead of the {len(asked)} asked for")
    length = compute_norm(delta)
    limit = ABSURD * (1 + compute_norm(received))
    if not length <= limit:
        raise PayloadError(f"FP6158 an update of norm {length:.3g}; nothing above {limit:.3g} is taken")


def check_widths(delta: State, received: State) -> None:
    """Refuse an update whose numbers have another width than those that the client `received`.

    A payload states how wide its numbers are, and one client must not decide how a sum is rounded.

    Raises:
        PayloadError: names the tensor and both widths.
    """
    for name, tensor in delta.items():
        if tensor.dtype != received[name].dtype:
            raise PayloadError(f"FP6159 {name} is {tensor.dtype}; it was sent as {received[name].dtype}")


@dataclass(frozen=True)
class ClientResult:
    """A client's part in a round: one line of `clients.jsonl`.

    Attributes:
        round: number of the round in which it was asked.
        client: its id; roster.json lists the names of real clients.
        rank: rank of its LoRA factors; None: it has none.
        rows, loss: None if clients report nothing that they measure on their examples.
        steps, seconds: None if clients do not report their work.
        downlink_from: version that the payload builds on; 0: the start; None: nothing.
        base_precision: None: the run's own.
        confidential: True in runs with privacy.
        staleness: steps that the server has taken since it asked; None: in synchronous rounds.
        rejected: why the update was left out; None: it was accepted.
        used: distinct examples that the client has trained on so far; None: it does not report them.
        joules: of training, waiting, and traffic up and down (`fedpeft.wiring.energy`); None: not counted.
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
        """Return the result as a line of JSON; the last six fields only if they are set."""
        optional = ("confidential", "staleness", "rejected", "used", "joules", "measured")
        return {name: value for name, value in asdict(self).items() if value is not None or name not in optional}


@dataclass
class ClientAnswers:
    """The answer of each client, how many count, and what asking and answering cost in bytes."""

    by_client: dict[int, State] = field(default_factory=dict)
    clients: int = 0
    downlink_bytes: int = 0
    uplink_bytes: int = 0


@dataclass(frozen=True)
class DecodedReport:
    """A checked and decoded report: its update and the server's copy of the client's memory, or why it is refused."""

    update: Update | None = None
    memory: State = field(default_factory=dict)
    changes: States = field(default_factory=dict)
    refused: str = ""

    @property
    def bytes(self) -> int:
        """Size of its tensors, without what the client received."""
        states = (self.update.delta if self.update else {}, self.memory, *self.changes.values())
        return sum(tensor.nbytes for state in states for tensor in state.values())


def ignore_report(report: Report) -> None:
    """Ignore a report."""


@dataclass
class ReportReceiver:
    """Receives a round's reports: checks and decodes each, hands its update on, and notes why it refuses one.

    Attributes:
        round: number of the server's round.
        layout: the trainable tensors, at the global rank.
        shared: names of the tensors that updates hold.
        strategy: may change the adapter shape of a client whose update is accepted.
        uplink: how updates are encoded.
        aggregator: takes the updates.
        by_rows: whether p_k is proportional to a client's examples, or else equal.
        most_rows: example count at which a client's weight is capped.
        note_report: is called with each report, valid or not.
        confidential: whether the run has privacy.
        silent: whether losses and numbers of examples are secret.
        estimates: the server's copies of its clients' memories, if the uplink needs them.
        drift: the clients' drift corrections.
        states: states of the server's drift corrections, as clients received them.
        results: one for each report.
        accepted: for each client whose update was accepted, the round in which it was asked.
        rejected: the clients whose update was refused.
        spent: number of clients that refused because their privacy budgets are spent.
        forms: new adapter shapes of clients, if they change.
        rows: example count of each client whose update was accepted.
        owned: returns the tensors of its update that a client has trained, given round, client and steps
            (`DrawsParts.compute_owned_shares`).
        uplink_parameters: number of parameters in all updates.
        passed_on: bytes that members of a secure sum send each other, on their way down.
        answers: each client's answers to the strategy's question before training; None: there was no question.
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
    note_report: Callable[[Report], None] = ignore_report
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
        """Return a decoder of reports whose turn to be added has not come, while others are still awaited.

        `sent` is what each client received; the decoder works inside `working`.
        """

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
        """Add a client's report on what it was `sent`; return its update, or None if it is refused."""
        self.note_report(report)
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
        if isinstance(self.strategy, AdjustsRanks):
            after = self.strategy.choose_next_form(update, self.layout)
            if after is not None and after != update.form:
                self.forms[report.client] = after
        self.accepted[report.client] = report.round
        self.rows[report.client] = report.rows
        self._losses[report.client] = report.loss, min(report.rows, self.most_rows)
        return update

    def add_mean(self, update: Update, loss: float, rows: float, clients: Sequence[int]) -> None:
        """Add the weighted mean of these clients' updates, of which only loss and example count are known."""
        self.aggregator.add(update)
        self.accepted |= dict.fromkeys(clients, self.round)
        self.uplink_parameters += len(clients) * self.layout.numel
        if not math.isnan(loss):  # impossible losses are not recorded
            self._losses[clients[0]] = loss, rows

    @property
    def lost_clients(self) -> set[int]:
        """The clients that have lost all state of earlier rounds."""
        return {result.client for result in self.results if result.rejected == LOST}

    def explain_rejections(self, called: Callable[[int], str]) -> str:
        """Return why the first refused client was refused, and how many others were; empty: none was.

        `called` returns a client's name, given its id.
        """
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
            staleness=self.round - report.round if isinstance(self.strategy, Buffered) else None,
            used=None if self.silent else report.used or None,
            measured=None if self.silent else report.joules or None,
        )

    def _update(self, report: Report, sent: SentState, layout: Layout) -> tuple[Update, State]:
        """Return the update, and the server's copy of the client's memory."""
        check_report(report, self.least_loss)
        memory: State = {}
        if self.estimates is not None and self.uplink.has_server_memory:
            memory = self.estimates.load(report.client, sent.instruction.acknowledged) or {}
        delta, memory = self.uplink.receive(report.payload, layout.shapes, memory)
        received, ranks, form = sent.state, sent.package.ranks, sent.instruction.form
        if (held := get_held_form(self.strategy, self.layout, form)) != form:
            delta, form = place_ranks(delta, self.layout, ranks), held
        check_update(delta, received, self.shared)
        check_widths(delta, received)
        answer: State = {}
        if self.answers is not None:
            if report.client not in self.answers.by_client:
                raise PayloadError("FP6160 an update of a client that has not answered the strategy's question")
            answer = self.answers.by_client[report.client]
        weight = float(min(report.rows, self.most_rows)) if self.by_rows else 1.0
        staleness = self.round - report.round
        owned = self.owned(report.round, report.client, report.steps) if self.strategy.counts_owned else {}
        return Update(report.client, weight, form, received, delta, staleness, ranks, owned, answer), memory

    def _decode_drift_changes(self, report: Report, layout: Layout) -> States:
        """Return the changes of a client's drift states, checked like an update, and as wide as the states."""
        made: dict[str, State] = {}
        sent = self.drift.decode(report.correction, {name: layout.shapes[name] for name in self.shared})
        for correction, change in sent.items():
            state = self.states[correction]
            check_update(change, state, self.shared)
            made[correction] = {name: tensor.to(state[name].dtype) for name, tensor in change.items()}
        return made

    @property
    def train_loss(self) -> float | None:
        """Mean training loss over the examples of the accepted clients; None: there are none, or losses are secret.

        A loss above `most_loss` counts as `most_loss`.
        """
        if self.silent or not self._losses:
            return None
        losses, most = self._losses.values(), self.most_loss
        return sum(min(loss, most) * rows for loss, rows in losses) / sum(rows for _, rows in losses)

    @property
    def most_loss(self) -> float:
        """The largest loss that counts, from the median of the accepted clients' losses; see `MOST_TIMES`."""
        return MOST_TIMES * max(1.0, median(loss for loss, _ in self._losses.values()))

    @property
    def overstated_losses(self) -> dict[int, float]:
        """The losses above `most_loss`, by client."""
        if self.silent or not self._losses:
            return {}
        most = self.most_loss
        return {client: loss for client, (loss, _) in self._losses.items() if loss > most}

    def compute_next_drift(self, clients: int) -> States:
        """Return the states of the server's drift corrections after the round, for a run with `clients` clients."""
        return self.drift.step(self.states, self._changes, clients) if self.accepted else self.states

"""How the server collects the updates of a round: in client order, as they arrive, or as a sum under masks.

A run has one collector. It sends the broadcast, receives the reports and returns an aggregation result. If no update
is accepted, the result is the state before the round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial

from rich.markup import escape

from fedpeft.aggregation.abilities import AsksClients, Buffered
from fedpeft.aggregation.aggregator import AggregationResult, Aggregator
from fedpeft.aggregation.update import Update
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import RunError
from fedpeft.peft.abilities import DrawsParts
from fedpeft.privacy.secure_sum.contribution import BESIDE, Losses, count_tensor_entries
from fedpeft.privacy.secure_sum.coordinator import VoidError
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.reporting.observer import Observer
from fedpeft.rounds.acceptance import MOST_TIMES, ClientAnswers, ReportReceiver, assume_all_trained
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.masked_sum import WEIGHTS, MaskedSum, compute_masked_traffic, compute_step
from fedpeft.rounds.progress import RunStore, ServerState
from fedpeft.rounds.questions import Questions
from fedpeft.rounds.round_log import RoundLog
from fedpeft.rounds.traffic import Traffic
from fedpeft.trust.question import parse_question
from fedpeft.wiring.setup import Setup


class UpdateCollector(RoundHook, ABC):
    """Collects the updates of each round; a hook, since some collectors act between rounds, too.

    Args:
        setup: the parts of the run.
        transport: how the server reaches its clients.
        store: the files of the run.
        observer: receives messages about clients whose update is left out.
    """

    def __init__(self, setup: Setup, transport: Transport, store: RunStore, observer: Observer) -> None:
        """Hold the parts of the run."""
        self.setup, self.transport, self.store, self.observer = setup, transport, store, observer

    def collect(self, log: RoundLog, before: ServerState, aggregator: Aggregator) -> AggregationResult:
        """Ask the cohort of a round to train, and return what its updates lead to."""
        setup, method = self.setup, self.setup.method
        answers = self._ask(log, before)
        log.sent = log.broadcast.create_sent_states(log.plan)
        log.received = ReportReceiver(
            round=log.plan.number,
            layout=setup.layout,
            shared=log.broadcast.downlink.shared,
            strategy=setup.strategy,
            uplink=setup.uplink,
            aggregator=aggregator,
            by_rows=setup.by_rows,
            most_rows=self.transport.most_rows(),
            note_report=log.note_report,
            confidential=setup.is_private,
            silent=setup.mechanism is not None and setup.mechanism.silent,
            estimates=self.store.estimates,
            drift=setup.drift,
            states=before.drift,
            owned=partial(method.compute_owned_shares, setup.layout, setup.config.seed)
            if isinstance(method, DrawsParts)
            else assume_all_trained,
            answers=answers,
            least_loss=setup.task.least_loss,
        )
        return self.receive(log, before)

    @abstractmethod
    def receive(self, log: RoundLog, before: ServerState) -> AggregationResult:
        """Send the broadcast, receive the reports, and return what the accepted updates lead to."""

    def measure_traffic(self, log: RoundLog) -> Traffic:
        """Return the bytes of a round; those of an average round if the cohort is secret."""
        if log.plan.expected_cohort is not None:
            return log.broadcast.estimate_traffic(log.plan.expected_cohort)
        received, answers = log.received, log.received.answers or ClientAnswers()
        return Traffic(
            sum(result.uplink_bytes for result in received.results) + answers.uplink_bytes,
            sum(s.bytes for s in log.sent) + received.passed_on + answers.downlink_bytes,
            sum(s.base_bytes for s in log.sent),
            received.uplink_parameters,
        )

    def report_left_out(self, log: RoundLog) -> None:
        """Tell the user why updates of real clients are left out."""
        why = log.received.explain_rejections(self.transport.called)
        if why and log.received.accepted and self.transport.remote and not log.plan.secret:
            self.observer.say(f"round {log.plan.number} without {escape(why)}")
        for client, loss in log.received.overstated_losses.items():
            if not log.plan.secret:
                self.observer.say(
                    f"round {log.plan.number}: {escape(self.transport.called(client))} states a training loss of "
                    f"{loss:g}, far above the others'; it counts as {log.received.most_loss:g}"
                )

    def _ask(self, log: RoundLog, before: ServerState) -> ClientAnswers | None:
        """Return the answers that the strategy asks for before clients train; None: it has no question."""
        rule = self.setup.strategy
        text = rule.choose_question("train", self.setup.layout) if isinstance(rule, AsksClients) else ""
        if not text:
            return None
        questions = Questions(self.setup, self.transport, before, self.transport.most_rows(), self.observer.say)
        return questions.ask_each(parse_question(text), log.plan.cohort, log.plan.number)


class OrderedCollector(UpdateCollector):
    """Waits for the whole cohort and folds its updates in client order."""

    enough = 0
    """Valid reports that end a round; 0: all clients of the cohort answer."""

    def receive(self, log: RoundLog, before: ServerState) -> AggregationResult:
        """Fold the updates in client order."""
        received, working = log.received, log.clock.aggregating
        early = received.create_early_decoder(self.transport.outstanding, working)
        for report, sent in self.transport.receive_answers(log.sent, self.enough, early):
            with working:
                received.add(report, sent)
        with working:
            return self._finish(log, before)

    def _finish(self, log: RoundLog, before: ServerState) -> AggregationResult:
        """Step along the accepted updates; without any, keep the state.

        Real clients that fail or lie must not end the federation of the others.

        Raises:
            RunError: no update is valid, and either all clients took part or the run is a simulation.
        """
        received, number = log.received, log.plan.number
        self.observer.begin_part("aggregation")
        self.report_left_out(log)
        if received.accepted or log.plan.steps_without_updates:
            return received.aggregator.finish(before.memory)
        if received.spent < len(received.results):
            failed = f"round {number}: none of {len(received.results)} clients returned a valid update"
            why = received.explain_rejections(self.transport.called)
            everyone = len(received.results) == self.setup.clients and not received.lost_clients
            if not self.transport.remote or everyone:
                self.store.records.append("clients.jsonl", *(result.line() for result in received.results))
                raise RunError(f"FP5207 {failed}; see clients.jsonl; {why}")
            self.observer.say(f"{failed}; the model stays as it is; {escape(why)}")
        return AggregationResult(before.adapter, before.memory)


class BufferedCollector(OrderedCollector):
    """Steps as soon as enough updates have arrived, whichever clients they come from (FedBuff)."""

    resent = 0
    """Bytes that a restarted server has sent to real clients again, until a round counts them."""

    @property
    def enough(self) -> int:  # type: ignore[override]
        """Valid reports that end a round."""
        assert isinstance(self.setup.strategy, Buffered)
        return self.setup.strategy.get_buffer_size()

    def open(self, state: ServerState | None) -> None:
        """Take over the clients that were training when the server stopped."""
        if state is not None and state.round < self.setup.rounds:
            resent = self.transport.resume(state.in_flight)
            self.resent = resent if self.transport.remote else 0  # a simulation counts as if there was no restart

    def measure_traffic(self, log: RoundLog) -> Traffic:
        """Return the bytes of a round, and what was sent again before it."""
        traffic, resent, self.resent = super().measure_traffic(log), self.resent, 0
        return replace(traffic, downlink_bytes=traffic.downlink_bytes + resent)

    def select(self, plan: RoundPlan, state: ServerState) -> RoundPlan:
        """Ask idle clients only, as many as it takes for a full cohort to be at work."""
        if plan.kind == "prepare":
            return plan
        return replace(plan, cohort=self.transport.select_idle(plan.cohort, self.setup.config.seed, plan.number))

    def before_commit(self, state: ServerState) -> ServerState:
        """Save which clients are at work."""
        return replace(state, in_flight=self.transport.in_flight)


class MaskedCollector(UpdateCollector):
    """Learns the sum of a cohort's updates, and no single one."""

    def receive(self, log: RoundLog, before: ServerState) -> AggregationResult:
        """Form the sum and step along it; if the sum is void, keep the state."""
        setup, received, number, clip, void = self.setup, log.received, log.plan.number, before.clip, ""
        assert clip is not None  # from the sum before round 1
        shapes = {name: setup.layout.shapes[name] for name in setup.layout.names if name in received.shared}
        size, working = count_tensor_entries(shapes), log.clock.aggregating
        seed, heard = setup.config.seed, log.note_report
        masked = MaskedSum(self.transport, self.secure, seed, number, size, BESIDE, clip, working, heard)
        weights = before.fixed.get(WEIGHTS, ())
        try:
            losses = Losses(setup.task.least_loss, MOST_TIMES * max([1.0, *before.losses[-1:]]))
            total = masked.compute_total([s.instruction for s in log.sent], "train", setup.by_rows, weights, losses)
            rate = setup.schedule.get_rate(number) * before.standing.rate
            mean = compute_step(total, setup, rate, shapes, before.adapter[next(iter(shapes))].dtype, before.told)
            update = Update(masked.arrived[0], total.weight, setup.layout.form, before.adapter, mean)
            received.add_mean(update, total.loss, total.rows, masked.arrived)
            next_clip = total.next_clip(masked.told, self.secure, self._compute_rate_ratio(number))
            result = replace(received.aggregator.finish(before.memory), clip=next_clip)
        except VoidError as error:
            void = str(error)
            self.observer.say(f"round {number}: {void}; the model stays as it is")
            result = AggregationResult(before.adapter, before.memory, clip=clip)
        masked.tell(self.observer.say)
        received.results.extend(masked.create_results(log.sent, void, confidential=self.secure.noisy))
        received.rejected.extend(masked.failed)
        received.passed_on = sum(masked.sent.values())
        self.report_left_out(log)
        return result

    def measure_traffic(self, log: RoundLog) -> Traffic:
        """Return the bytes of a round; those of an average sum if the cohort is secret."""
        traffic = super().measure_traffic(log)
        return compute_masked_traffic(traffic, self.setup, log.broadcast) if log.plan.secret else traffic

    def after_step(self, before: ServerState, after: ServerState, log: RoundLog) -> ServerState:
        """After an undone step, shorten the reach of the grid as much as the safeguard lowers the learning rate."""
        if not log.undone or self.secure.noisy or after.clip is None:
            return after
        return replace(after, clip=after.clip * after.standing.rate / before.standing.rate)

    @property
    def secure(self) -> SecureSum:
        """The settings of the sum."""
        assert self.setup.secure_sum is not None
        return self.setup.secure_sum

    def _compute_rate_ratio(self, number: int) -> float:
        """Return the ratio of the next round's learning rate to this one's; 1 after the last round."""
        schedule = self.setup.schedule
        last = number >= self.setup.rounds or not schedule.get_rate(number)
        return 1.0 if last else schedule.get_rate(number + 1) / schedule.get_rate(number)


def choose_collector(setup: Setup) -> type[UpdateCollector]:
    """Return the class of a run's collector."""
    if setup.secure_sum is not None:
        return MaskedCollector
    return BufferedCollector if isinstance(setup.strategy, Buffered) else OrderedCollector

"""One federation, start to end: the file to read first.

    prepare   ask every client for statistics of its frozen features; the head starts from their sum
    round     sample a cohort, send each client the global adapter in its form, let it train,
              fold the updates in client order, let the server optimizer step, evaluate, record, checkpoint

The server talks to clients through a Flower `Grid` and knows nothing of how they run: the same loop drives a
simulation, a Ray cluster and real machines. After each round a checkpoint is written; a killed run continues from it
with identical results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from flwr.serverapp import Grid
from rich.markup import escape

from fedpeft.aggregation.aggregator import AggregationResult, Aggregator, aggregator
from fedpeft.aggregation.exactness import measured
from fedpeft.aggregation.update import Update, not_finite
from fedpeft.communication.downlink import Sent
from fedpeft.communication.release import Release
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import RunError
from fedpeft.machine.memory import trim
from fedpeft.peft.adapter import State
from fedpeft.privacy.engine import PrivacyEngine
from fedpeft.privacy.secure_sum.contribution import BESIDE, entries
from fedpeft.privacy.secure_sum.coordinator import VoidError
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.run.asked import compares_clients
from fedpeft.run.observer import Observer, RoundResult, validating
from fedpeft.run.records import plain
from fedpeft.run.setup import Setup
from fedpeft.server.acceptance import Acceptance, Answers
from fedpeft.server.clock import Clock
from fedpeft.server.dispatch import Dispatch
from fedpeft.server.energy import EnergyBook, told
from fedpeft.server.evaluation import Evaluate, Evaluation, Examiner, OwnRows
from fedpeft.server.exchange import NOBODY, Exchange, Joined, numbered
from fedpeft.server.learned import products
from fedpeft.server.masked_sum import WEIGHTS, MaskedSum, masked_traffic, step_of
from fedpeft.server.preparation import judged, prepare
from fedpeft.server.progress import Progress, RunStore
from fedpeft.server.questions import Questions, of_kept
from fedpeft.server.results import round_result
from fedpeft.server.sampling import Sampler
from fedpeft.server.sum_journal import SumJournal
from fedpeft.server.tasks import Score, TaskTurns
from fedpeft.server.traffic import Traffic
from fedpeft.trust.disagreement import Watched
from fedpeft.trust.question import asked


def never() -> bool:
    """Nobody asks a run to stop."""
    return False


def unlimited() -> float:
    """Rows are believed, however many a client has."""
    return math.inf


class Server:
    """The rounds of a run.

    Args:
        setup: the run's parts.
        grid: how clients are reached.
        sampler: draws the cohorts.
        store: what is kept on the disk.
        observer: is told how things go on.
        evaluate, examiner: see `Evaluation`.
        validation_loss: of a global state on the base of a version, by which a step is judged; None: none is.
        fixed: what was probed at the start, kept in the checkpoint.
        privacy: the mechanism at work; None: there is none.
        remote: whether clients are on other machines.
        stopping: asked before each round whether the run should end here; it can go on later.
        announce, journal, called, members: see `Exchange`.
        most_rows: asked before each round how many rows a client can weigh as much as.
        book: of what clients use; None: nobody counts.
        score_task: of a state on a task, where there are several; see `fedpeft.server.tasks`.
    """

    def __init__(
        self,
        setup: Setup,
        grid: Grid,
        sampler: Sampler,
        store: RunStore,
        observer: Observer,
        evaluate: Evaluate | None,
        fixed: dict[str, Any],
        privacy: PrivacyEngine | None = None,
        remote: bool = False,
        stopping: Callable[[], bool] = never,
        most_rows: Callable[[], float] = unlimited,
        validation_loss: Callable[[State, int], float] | None = None,
        announce: Callable[[Release], str] | None = None,
        journal: SumJournal | None = None,
        called: Callable[[int], str] = numbered,
        members: Joined = NOBODY,
        book: EnergyBook | None = None,
        score_task: Score | None = None,
        examiner: Examiner | None = None,
    ) -> None:
        self.setup, self.sampler, self.store, self.observer = setup, sampler, store, observer
        self.fixed, self.privacy, self.stopping = fixed, privacy, stopping
        self.validation_loss, self.most_rows, self.book = validating(observer, validation_loss), most_rows, book
        self.clients = Exchange(grid, self._answered, remote, announce, journal, called, members)
        tasks, say = setup.facts.tasks, observer.say
        self.turns: TaskTurns | None = None
        if tasks is not None and score_task is not None:
            self.turns = TaskTurns(setup, self.clients, tasks, score_task, most_rows, say)
        self.evaluation = Evaluation(setup, self.clients, validating(observer, evaluate), observer.say, examiner)

    def run(self) -> Progress:
        """All rounds that are still to do; returns the state that they have led to."""
        progress = self.store.checkpoints.load()
        if self.privacy is not None:
            self.privacy.open(resumed=progress is not None)
        self.store.restore(progress)
        if progress is None:
            start = prepare(
                self.setup, self.clients, self.evaluation, self.fixed, self.most_rows(), self.privacy, self.observer.say
            )
            progress = judged(self.setup, start, self.validation_loss)
            if self.turns is not None:
                progress.lines["tasks.jsonl"] = self.turns.lines(progress)
            self.commit(progress)
        if self.privacy is not None and not self.privacy.trains:
            self.observer.say("the start has the whole privacy budget: the run ends before round 1")
            return progress
        if self.book is not None:
            self.book.replay(self.store.records.read("clients.jsonl"), progress.rows, progress.round)
        self.observer.started(self.setup.rounds, progress.round)
        if progress.round < self.setup.rounds:
            self.clients.resume(progress.in_flight)
        while progress.round < self.setup.rounds and not self.stopping() and not self._nothing_gained(progress):
            progress = progress if self.turns is None else self.turns.begun(progress)
            plan = self.open(progress)
            if plan is None:
                self.observer.say(f"the privacy budget is spent after {progress.round} rounds: the run ends here")
                break
            self.observer.doing()
            progress, result = self.round(plan, progress)
            self.commit(progress)
            if self.observer.round_done(result):
                break
        return progress

    def commit(self, progress: Progress) -> None:
        """A round counts once its checkpoint is on the disk, and all else that is kept of it before."""
        if (ensemble := self.setup.measured.ensemble) is not None:
            self.store.keep(progress, ensemble.last)
        self.store.commit(progress)
        trim()

    def open(self, progress: Progress) -> RoundPlan | None:
        """Who is asked in the next round; under privacy it is charged first, and None: no budget allows another."""
        round, seed = progress.round + 1, self.setup.config.seed
        if self.book is not None:
            self.book.begin(round, progress.rows)
        drawn = self.clients.under_way(round) or self.sampler.draw(seed, round)
        if self.privacy is None:
            idle = self.clients.idle(drawn, seed, round) if self.setup.strategy.asynchronous else drawn
            return RoundPlan(round, idle)
        plan = self.privacy.enter(round, progress.digest(), drawn)
        if plan is not None and plan.spent:
            named = ", ".join(map(self.clients.called, plan.spent))
            who = "somebody whom coins have drawn" if self.privacy.draws else named
            self.observer.say(f"round {round}: the privacy budget of {who} is spent; it sits out")
        return plan

    def round(self, plan: RoundPlan, progress: Progress) -> tuple[Progress, RoundResult]:
        """One round: the server after it, and what is told of it."""
        clock = Clock()
        plan = plan if self.book is None else self.book.open(plan)
        steps = {} if self.book is None else self.book.lean(plan.cohort)
        setup, dispatch = self.setup, Dispatch(self.setup, progress, self.clients.remote, steps)
        if self.clients.announce is not None:
            self.clients.recorded = self.clients.announce(dispatch.release("train", plan.number))
        answers = self._answers(plan, progress)
        sent = dispatch.cohort(plan)
        taken = Acceptance(
            round=plan.number,
            layout=setup.layout,
            shared=dispatch.downlink.shared,
            strategy=setup.strategy,
            uplink=setup.uplink,
            aggregator=self._aggregator(plan, progress),
            by_rows=setup.by_rows,
            most_rows=self.most_rows(),
            privacy=self.privacy,
            estimates=self.store.estimates,
            drift=setup.drift,
            states=progress.drift,
            owned=partial(setup.method.owned, setup.layout, setup.config.seed),
            answers=answers,
        )
        if setup.secure_sum is not None:
            outcome = self._summed(setup.secure_sum, taken, sent, progress, clock)
        else:
            early = taken.early(self.clients.outstanding, clock.aggregating)
            for report, dispatched in self.clients.answers(sent, setup.strategy.asynchronous, early):
                with clock.aggregating:
                    taken.add(report, dispatched)
            with clock.aggregating:
                outcome = self._finished(taken, progress)
        after = progress.after(outcome, taken, dispatch.downlink.made, setup.clients)
        self.store.bases.put(after.residual.version, after.residual.total)
        clock.trained()
        spent = self.book.account(taken.results, plan.number) if self.book is not None else None
        after, undone = self._judged(progress, after, min(taken.accepted.values(), default=plan.number))
        after = after if self.turns is None else self.turns.ended(after)
        due = plan.number == setup.rounds or plan.number % setup.measured.validation.every == 0
        metrics = self.evaluation.of(after) if due else None
        after = self.evaluation.remembered(after, metrics)
        traffic = self._traffic(taken, sent, dispatch)
        result = replace(
            round_result(progress, outcome, taken, traffic, metrics, clock, self._expected, self._judges_noise),
            learning_rate=dispatch.learning_rate(plan.number),
            undone=undone,
        )
        result = result if spent is None or self._secret_cohort else told(result, spent)
        lines = {"clients.jsonl": [plain(r.line()) for r in taken.results], "rounds.jsonl": [plain(asdict(result))]}
        if outcome.disagreement is not None:
            lines["disagreement.jsonl"] = [plain(outcome.disagreement.line(plan.number))]
        if self.turns is not None:
            lines["tasks.jsonl"] = self.turns.lines(after)
        lines |= self.evaluation.examined(after, plan.number)
        counters = after.counters.after(traffic, result.rejected, clock.seconds)
        return replace(after, lines=lines, counters=counters, in_flight=self.clients.in_flight), result

    def _answers(self, plan: RoundPlan, progress: Progress) -> Answers | None:
        """To what the rule asks each client of a round before it trains; None: nothing."""
        if not self.setup.strategy.asks:
            return None
        questions = Questions(self.setup, self.clients, progress, self.most_rows(), self.observer.say)
        return questions.each(asked(self.setup.strategy.asks), plan.cohort, plan.number)

    def _summed(
        self, secure: SecureSum, taken: Acceptance, sent: list[Sent], progress: Progress, clock: Clock
    ) -> AggregationResult:
        """What the sum of the updates has led to; where it is void, the model stays as it is."""
        setup, round, clip, void = self.setup, taken.round, progress.clip, ""
        assert clip is not None  # from the sum before round 1
        shapes = {name: setup.layout.shapes[name] for name in setup.layout.names if name in taken.shared}
        size, working, heard = entries(shapes), clock.aggregating, self.privacy.heard if self.privacy else None
        masked = MaskedSum(self.clients, secure, setup.config.seed, round, size, BESIDE, clip, working, heard)
        schedule = setup.schedule
        growth = schedule.at(round + 1) / schedule.at(round) if round < setup.rounds and schedule.at(round) else 1.0
        try:
            total = masked.of([s.instruction for s in sent], "train", setup.by_rows, progress.fixed.get(WEIGHTS, ()))
            rate = schedule.at(round) * progress.standing.rate
            mean = step_of(total, setup, rate, shapes, progress.adapter[next(iter(shapes))].dtype, progress.told)
            update = Update(masked.arrived[0], total.weight, setup.layout.form, progress.adapter, mean)
            taken.add_mean(update, total.loss, total.rows, masked.arrived)
            next_clip = total.next_clip(masked.told, secure, growth)
            outcome = replace(taken.aggregator.finish(progress.memory), clip=next_clip)
        except VoidError as error:
            void = str(error)
            self.observer.say(f"round {round}: {void}; the model stays as it is")
            outcome = AggregationResult(progress.adapter, progress.memory, clip=clip)
        masked.tell(self.observer.say)
        taken.results.extend(masked.results(sent, void, confidential=secure.noisy))
        taken.rejected.extend(masked.failed)
        taken.passed_on = sum(masked.sent.values())
        self._tell_left_out(taken)
        return outcome

    def _tell_left_out(self, taken: Acceptance) -> None:
        why = taken.why_left_out(self.clients.called)
        if why and taken.accepted and self.clients.remote and not self._secret_cohort:
            self.observer.say(f"round {taken.round} without {escape(why)}")

    def _judged(self, before: Progress, after: Progress, asked: int) -> tuple[Progress, bool]:
        """The server after a step that the safeguard has looked at, and whether it is undone; `asked`: the earliest
        round that one of its clients was asked in. RunError where nothing would undo what are no numbers."""
        guard, broken = self.setup.steering.safeguard, not_finite(self.setup.strategy, after.adapter)
        if guard is None or self.validation_loss is None:
            if broken:
                raise RunError(f"round {after.round}: {broken}; no update was")
            return after, False
        loss = self.validation_loss(after.adapter, after.residual.version)
        counts, standing = guard.judge(loss, before.standing)
        if counts:
            return replace(after, standing=standing), False
        if asked <= before.lowered:  # it has trained at the rate of then, which has been lowered already
            standing = before.standing
        lowers = standing.rate < before.standing.rate
        self.store.bases.put(before.residual.version, before.residual.total)
        told = f"; from here on clients train at {standing.rate:.3g} of the learning rate"
        told += ", and the server's steps are as much shorter" if self.setup.optimizer.pace is None else ""
        self.observer.say(
            f"round {after.round}: undone, since the validation loss would be {loss:.3g} after "
            f"{before.standing.lowest:.3g}{broken and f', as {broken}'}" + (told if lowers else "")
        )
        undone = replace(before.undone(after, standing), lowered=after.round if lowers else before.lowered)
        sums = self.setup.secure_sum
        if sums is not None and not sums.noisy and undone.clip is not None:  # a grid that reaches as far as updates do
            undone = replace(undone, clip=undone.clip * standing.rate / before.standing.rate)
        return undone, True

    def _nothing_gained(self, progress: Progress) -> bool:
        """Whether the run's patience is at its end."""
        patience = self.setup.steering.patience
        if progress.best is None or not 0 < patience <= progress.best.since:
            return False
        self.observer.say(f"nothing was gained in {patience} evaluations: the run ends here")
        return True

    def own_rows(self, progress: Progress) -> OwnRows:
        """Each client's model on its own held-out rows: what the run keeps, and what the client has of its own."""
        return self.evaluation.own_rows(of_kept(progress, self.store.bases))

    def questions(self, progress: Progress) -> Questions:
        """To clients, about the state that the run keeps, on their own held-out rows."""
        kept = of_kept(progress, self.store.bases)
        return Questions(self.setup, self.clients, kept, self.most_rows(), self.observer.say)

    def _aggregator(self, plan: RoundPlan, progress: Progress) -> Aggregator:
        """What takes the round's updates: the mechanism's, where it acts at the server, or the strategy's."""
        setup = self.setup
        optimizer = setup.optimizer.gentler(progress.standing.rate)
        given = setup.strategy, optimizer, setup.layout, progress.adapter, plan.number
        if self.privacy is not None:
            private = self.privacy.aggregator(*given, plan.attempt, progress.clip)
            if private is not None:
                return private
        inner = aggregator(*given, setup.config.seed, self.store.waiting, setup.factor_view, progress.learned)
        if setup.secure_sum is not None:  # of which no single update can be measured
            return inner
        inner = measured(inner, setup.strategy, setup.layout, setup.weight_changes)
        return Watched(inner, setup.layout, products(setup)) if compares_clients(setup) else inner

    def _finished(self, taken: Acceptance, progress: Progress) -> AggregationResult:
        """What the updates have led to; without any the model stays as it is.

        Real clients that fail, or lie, must not end a federation of others for good.

        Raises:
            RunError: no update is valid, and these were all clients that there are, or the run is a simulation.
        """
        self.observer.doing("aggregation")
        self._tell_left_out(taken)
        if taken.accepted or self._noise_alone:
            return taken.aggregator.finish(progress.memory)
        if taken.spent < len(taken.results):
            failed = f"round {taken.round}: none of {len(taken.results)} clients returned a valid update"
            why = taken.why_left_out(self.clients.called)
            if not self.clients.remote or (len(taken.results) == self.setup.clients and not taken.lost):
                self.store.records.append("clients.jsonl", *(result.line() for result in taken.results))
                raise RunError(f"{failed}; see clients.jsonl; {why}")
            self.observer.say(f"{failed}; the model stays as it is; {escape(why)}")
        return AggregationResult(progress.adapter, progress.memory)

    def _traffic(self, taken: Acceptance, sent: list[Sent], dispatch: Dispatch) -> Traffic:
        """What the round's messages come to; of a secret cohort what is expected."""
        if self.privacy is not None and self._secret_cohort:
            expected = dispatch.expected(self.privacy.federation.cohort)
            return expected if self.setup.secure_sum is None else masked_traffic(expected, self.setup, dispatch)
        answers = taken.answers or Answers()
        return Traffic(
            sum(result.uplink_bytes for result in taken.results) + answers.uplink_bytes,
            sum(s.bytes for s in sent) + taken.passed_on + answers.downlink_bytes,
            sum(s.base_bytes for s in sent),
            taken.uplink_parameters,
        )

    @property
    def _expected(self) -> int | None:
        """How many take part in a round on average, where nobody may know how many do."""
        return self.privacy.federation.cohort if self.privacy is not None and self._secret_cohort else None

    @property
    def _judges_noise(self) -> bool:
        """Whether updates are judged as others see them; where the server adds the noise, they are judged without."""
        return self.privacy is None or self.privacy.mechanism.noises_updates

    @property
    def _secret_cohort(self) -> bool:
        """Whether nobody may know who takes part in a round, nor how many do; an empty cohort is one, too."""
        return self.privacy is not None and self.privacy.mechanism.secret_cohort

    @property
    def _noise_alone(self) -> bool:
        """Whether a round without updates takes its step of noise: that it took none would tell of whoever had been the
        only one whose update is taken, and related noise goes on from round to round."""
        return self._secret_cohort or (self.privacy is not None and self.privacy.mechanism.turns)

    def _answered(self, phase: str, done: int, total: int) -> None:
        if not (self._secret_cohort and phase == "train"):
            self.observer.client_done(phase, done, total)

"""One federation, start to end: the file to read first.

    prepare   ask every client for statistics of its frozen features; the head starts from their sum
    round     sample a cohort, send each client the global adapter in its form, let it train,
              fold the updates in client order, let the server optimizer step, evaluate, record, checkpoint

The server talks to clients through a Flower `Grid` and knows nothing of how they run: the same loop drives a
simulation, a Ray cluster and real machines. After each round a checkpoint is written; a killed run continues from it
with identical results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from flwr.serverapp import Grid

from fedpeft.aggregation.aggregator import Aggregator, aggregator
from fedpeft.aggregation.exactness import measured
from fedpeft.aggregation.update import not_finite
from fedpeft.communication.release import Release
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import RunError
from fedpeft.machine.memory import trim
from fedpeft.peft.adapter import State
from fedpeft.privacy.engine import PrivacyEngine
from fedpeft.run.asked import compares_clients
from fedpeft.run.observer import Observer, RoundResult, validating
from fedpeft.run.records import plain
from fedpeft.run.setup import Setup
from fedpeft.server.clock import Clock
from fedpeft.server.collectors import choose_collector
from fedpeft.server.dispatch import Dispatch
from fedpeft.server.energy import EnergyBook, told
from fedpeft.server.evaluation import Evaluate, Evaluation, Examiner, OwnRows
from fedpeft.server.exchange import NOBODY, Exchange, Joined, numbered, unlimited
from fedpeft.server.learned import products
from fedpeft.server.preparation import judged, prepare
from fedpeft.server.progress import Progress, RunStore
from fedpeft.server.questions import Questions, of_kept
from fedpeft.server.results import round_result
from fedpeft.server.round_log import RoundLog
from fedpeft.server.sampling import Sampler
from fedpeft.server.sum_journal import SumJournal
from fedpeft.server.tasks import Score, TaskTurns
from fedpeft.trust.disagreement import Watched


def never() -> bool:
    """Nobody asks a run to stop."""
    return False


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
        self.validation_loss, self.book = validating(observer, validation_loss), book
        self.clients = Exchange(grid, self._answered, remote, announce, journal, called, members, most_rows)
        self.collector = choose_collector(setup)(setup, self.clients, store, observer, privacy)
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
                self.setup,
                self.clients,
                self.evaluation,
                self.fixed,
                self.clients.most_rows(),
                self.privacy,
                self.observer.say,
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
        alone = self._secret_cohort or (self.privacy is not None and self.privacy.mechanism.turns)
        plan = replace(plan, steps=steps, expected_cohort=self._expected, steps_without_updates=alone)
        setup, dispatch = self.setup, Dispatch(self.setup, progress, self.clients.remote, plan.steps)
        self.clients.publish(lambda: dispatch.release("train", plan.number))
        log = RoundLog(plan, dispatch, clock)
        outcome = self.collector.collect(log, progress, self._aggregator(plan, progress))
        taken = log.received
        after = progress.after(outcome, taken, dispatch.downlink.made, setup.clients)
        self.store.bases.put(after.residual.version, after.residual.total)
        clock.trained()
        spent = self.book.account(taken.results, plan.number) if self.book is not None else None
        after, undone = self._judged(progress, after, log.earliest_asked)
        after = after if self.turns is None else self.turns.ended(after)
        due = plan.number == setup.rounds or plan.number % setup.measured.validation.every == 0
        metrics = self.evaluation.of(after) if due else None
        after = self.evaluation.remembered(after, metrics)
        traffic = self.collector.measure_traffic(log)
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

    def _judged(self, before: Progress, after: Progress, asked: int) -> tuple[Progress, bool]:
        """The server after a step that the safeguard has looked at, and whether it is undone; `asked`: the earliest
        round that one of its clients was asked in. RunError where nothing would undo what are no numbers."""
        guard, broken = self.setup.steering.safeguard, not_finite(self.setup.strategy, after.adapter)
        if guard is None or self.validation_loss is None:
            if broken:
                raise RunError(f"FP5206 round {after.round}: {broken}; no update was")
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
        return Questions(self.setup, self.clients, kept, self.clients.most_rows(), self.observer.say)

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

    def _answered(self, phase: str, done: int, total: int) -> None:
        if not (self._secret_cohort and phase == "train"):
            self.observer.client_done(phase, done, total)

"""Where tasks come one after the other: what happens between them, and how each task is done after each of them.

A rule that goes by tasks may have clients asked for sums where a task begins and where it ends
(`fedpeft.aggregation.task_rules`). Those answer that are at it on time (of very many, some); what is sent counts as
what is sent before round 1 does. All of it is made from the last checkpoint, so a run that was killed between two tasks
does it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fedpeft.aggregation.task_rules import Moment, TaskStrategy, Turn
from fedpeft.clients.executor import Totals
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.peft.adapter import State
from fedpeft.run.setup import Setup
from fedpeft.server.exchange import Exchange
from fedpeft.server.hooks import RoundHook
from fedpeft.server.progress import Progress
from fedpeft.server.questions import Questions
from fedpeft.server.round_log import RoundLog, StartLog
from fedpeft.server.sampling import measured
from fedpeft.trust.question import asked

Score = Callable[[State, int, int, bool], Totals]
"""Of a global state, on the base of a version, on held-out rows of a task; whether only its classes compete."""


@dataclass(frozen=True)
class TaskScheduler(RoundHook):
    """Begins and ends tasks between rounds, and scores each task after each of them.

    Attributes:
        setup, clients: the run's.
        sequence: of the tasks.
        score: of a state on a task.
        say: is told of answers that do not count.
    """

    setup: Setup
    clients: Exchange
    sequence: TaskSequence
    score: Score
    say: Callable[[str], None] = lambda _: None

    def after_start(self, state: Progress, log: StartLog) -> Progress:
        """Score each task before round 1."""
        log.lines["tasks.jsonl"] = self.lines(state)
        return state

    def before_round(self, state: Progress) -> Progress:
        """Return the state in which a task begins, if one begins with the next round."""
        following = state.round + 1
        return self._turned("begin", state, following) if self.sequence.schedule.begins(following) else state

    def after_step(self, before: Progress, after: Progress, log: RoundLog) -> Progress:
        """Return the state in which a task has ended, if this was its last round."""
        last = self.sequence.schedule.ends(after.round, self.setup.rounds)
        return self._turned("end", after, after.round) if last else after

    def measure(self, state: Progress, log: RoundLog) -> None:
        """Score each task after a task's last round."""
        log.lines["tasks.jsonl"] = self.lines(state)

    def lines(self, progress: Progress) -> list[dict[str, Any]]:
        """What `tasks.jsonl` says of the state before round 1, and after each task's last round; else nothing."""
        round, schedule = progress.round, self.sequence.schedule
        if round and not schedule.ends(round, self.setup.rounds):
            return []
        state, version = progress.reached, progress.residual.version
        tasks = range(len(self.sequence.names))
        among_all = [self.score(state, version, task, False) for task in tasks]
        line = {
            "round": round,
            "task": schedule.current(round) if round else None,
            "accuracy": [total.accuracy for total in among_all],
            "loss": [total.mean_loss for total in among_all],
        }
        if self.setup.facts.classes:
            line["accuracy_known_task"] = [self.score(state, version, task, True).accuracy for task in tasks]
        return [line]

    def _turned(self, moment: Moment, progress: Progress, round: int) -> Progress:
        rule = self.setup.strategy
        if not isinstance(rule, TaskStrategy):
            return progress
        text, seed = rule.asked(moment, self.setup.layout), self.setup.config.seed
        task, sums, counters = self.sequence.schedule.current(round), State(), progress.counters
        if text:
            schedule, everybody = self.sequence.schedule, list(range(self.setup.clients))
            on_time = schedule.on_time(measured(len(everybody), seed), seed) or schedule.on_time(everybody, seed)
            questions = Questions(self.setup, self.clients, progress, self.clients.most_rows(), self.say)
            answered = questions.ask(asked(text), on_time, round)
            sums = answered.total
            counters = replace(
                counters,
                uplink_bytes=counters.uplink_bytes + answered.uplink_bytes,
                prepare_bytes=counters.prepare_bytes + answered.uplink_bytes,
                downlink_bytes=counters.downlink_bytes + answered.downlink_bytes,
            )
        turn = Turn(task, self.sequence.classes[task], self.setup.layout, progress.adapter, progress.learned, sums)
        state, memory = rule.turned(moment, turn)
        return replace(progress, adapter=state, learned=memory, counters=counters)


def attach(setup: Setup, clients: Exchange, score: Score | None, say: Callable[[str], None]) -> RoundHook | None:
    """Return the hook of a run whose tasks come one after another."""
    sequence = setup.facts.tasks
    return None if sequence is None or score is None else TaskScheduler(setup, clients, sequence, score, say)

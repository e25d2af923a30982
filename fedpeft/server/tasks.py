"""Where tasks come one after the other: what happens between them, and how each task is done after each of them.

A rule that goes by tasks may have clients asked for sums where a task begins and where it ends
(`fedpeft.aggregation.task_rules`). Those answer that are at it on time (of very many, some); what is sent counts as
what is sent before round 1 does. All of it is made from the last checkpoint, so a run that was killed between two tasks
does it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fedpeft.aggregation.task_rules import Moment, TaskStrategy, Turn
from fedpeft.clients.executor import Totals
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.peft.adapter import State
from fedpeft.run.setup import Setup
from fedpeft.server.exchange import Exchange
from fedpeft.server.progress import Progress
from fedpeft.server.questions import Questions
from fedpeft.server.sampling import measured
from fedpeft.trust.question import asked

Score = Callable[[State, int, int, bool], Totals]
"""Of a global state, on the base of a version, on held-out rows of a task; whether only its classes compete."""


@dataclass(frozen=True)
class TaskTurns:
    """What happens between rounds of different tasks.

    Attributes:
        setup, clients: the run's.
        sequence: of the tasks.
        score: of a state on a task.
        most_rows: that a client may weigh.
        say: is told of answers that do not count.
    """

    setup: Setup
    clients: Exchange
    sequence: TaskSequence
    score: Score
    most_rows: Callable[[], float] = lambda: math.inf
    say: Callable[[str], None] = lambda _: None

    def begun(self, progress: Progress) -> Progress:
        """The server before the next round, where a task begins with it; else as it was."""
        following = progress.round + 1
        return self._turned("begin", progress, following) if self.sequence.schedule.begins(following) else progress

    def ended(self, progress: Progress) -> Progress:
        """The server after its last round, where that was a task's last one; else as it was."""
        last = self.sequence.schedule.ends(progress.round, self.setup.rounds)
        return self._turned("end", progress, progress.round) if last else progress

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
            questions = Questions(self.setup, self.clients, progress, self.most_rows(), self.say)
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

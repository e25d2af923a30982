"""Continual learning in the round loop: what happens between tasks, and each task's score after each of them.

A task-aware strategy may ask clients for sums when a task begins and when it ends (`fedpeft.aggregation.task_rules`).
Only clients that reach the task on schedule are asked (a sample of large populations). This traffic counts like that
before round 1. All of it is computed from the last checkpoint, so a run that was killed between two tasks repeats it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fedpeft.aggregation.abilities import AsksClients, Moment
from fedpeft.aggregation.task_rules import TaskBoundary, TaskStrategy
from fedpeft.clients.executor import Totals
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.peft.adapter import State
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.questions import Questions
from fedpeft.rounds.round_log import RoundLog, StartLog
from fedpeft.rounds.sampling import select_measured_clients
from fedpeft.trust.question import parse_question
from fedpeft.wiring.setup import Setup

Score = Callable[[State, int, int, bool], Totals]
"""Returns totals on held-out examples, given state, base version, task, and whether only the task's classes compete."""


@dataclass(frozen=True)
class TaskScheduler(RoundHook):
    """Begins and ends tasks between rounds, and scores each task after each of them.

    Attributes:
        setup: the parts of the run.
        clients: transport to the clients.
        sequence: the tasks in their order.
        score: scores a state on a task; None: a server of real clients has no examples to score it on.
        say: receives messages about answers that do not count.
    """

    setup: Setup
    clients: Transport
    sequence: TaskSequence
    score: Score | None
    say: Callable[[str], None] = lambda _: None

    def after_start(self, state: ServerState, log: StartLog) -> ServerState:
        """Score each task before round 1."""
        log.lines["tasks.jsonl"] = self.build_lines(state)
        return state

    def before_round(self, state: ServerState) -> ServerState:
        """Return the state in which a task begins, if one begins with the next round."""
        following = state.round + 1
        return self._ask_rule("begin", state, following) if self.sequence.schedule.is_task_start(following) else state

    def after_step(self, before: ServerState, after: ServerState, log: RoundLog) -> ServerState:
        """Return the state in which a task has ended, if this was its last round."""
        last = self.sequence.schedule.is_task_end(after.round, self.setup.rounds)
        return self._ask_rule("end", after, after.round) if last else after

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Score each task after a task's last round."""
        log.lines["tasks.jsonl"] = self.build_lines(state)

    def build_lines(self, progress: ServerState) -> list[dict[str, Any]]:
        """Return the lines of `tasks.jsonl` before round 1 and after each task's last round; otherwise none."""
        round_number, schedule, score = progress.round, self.sequence.schedule, self.score
        if score is None or (round_number and not schedule.is_task_end(round_number, self.setup.rounds)):
            return []
        state, version = progress.reached_state, progress.residual.version
        tasks = range(len(self.sequence.names))
        among_all = [score(state, version, task, False) for task in tasks]
        line = {
            "round": round_number,
            "task": schedule.get_current(round_number) if round_number else None,
            "accuracy": [total.accuracy for total in among_all],
            "loss": [total.mean_loss for total in among_all],
        }
        if self.setup.facts.classes:
            line["accuracy_known_task"] = [score(state, version, task, True).accuracy for task in tasks]
        return [line]

    def _ask_rule(self, moment: Moment, progress: ServerState, round_number: int) -> ServerState:
        rule = self.setup.strategy
        if not isinstance(rule, TaskStrategy):
            return progress
        text, seed = "", self.setup.config.seed
        if isinstance(rule, AsksClients):
            text = rule.choose_question(moment, self.setup.layout)
        task, sums, counters = self.sequence.schedule.get_current(round_number), State(), progress.counters
        if text:
            schedule, everybody = self.sequence.schedule, list(range(self.setup.clients))
            on_time = schedule.select_on_time(
                select_measured_clients(len(everybody), seed), seed
            ) or schedule.select_on_time(everybody, seed)
            questions = Questions(self.setup, self.clients, progress, self.clients.most_rows(), self.say)
            answered = questions.ask(parse_question(text), on_time, round_number)
            sums = answered.total
            counters = replace(
                counters,
                uplink_bytes=counters.uplink_bytes + answered.uplink_bytes,
                prepare_bytes=counters.prepare_bytes + answered.uplink_bytes,
                downlink_bytes=counters.downlink_bytes + answered.downlink_bytes,
            )
        classes, layout = self.sequence.classes[task], self.setup.layout
        boundary = TaskBoundary(moment, task, classes, layout, progress.adapter, progress.learned, sums)
        state, memory = rule.cross_boundary(boundary)
        return replace(progress, adapter=state, learned=memory, counters=counters)


def attach(setup: Setup, clients: Transport, score: Score | None, say: Callable[[str], None]) -> RoundHook | None:
    """Return the hook of a run whose tasks come one after another."""
    sequence = setup.facts.tasks
    return None if sequence is None else TaskScheduler(setup, clients, sequence, score, say)

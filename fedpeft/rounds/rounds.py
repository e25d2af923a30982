"""One federation, start to end: the file to read first.

    prepare   ask every client for statistics of its frozen features; the head starts from their sum
    round     sample a cohort, send each client the global adapter in its shape, let it train,
              fold the updates in client order, let the server optimizer step, evaluate, record, checkpoint

The server reaches clients through a Flower `Grid` and does not depend on where they run: the same loop drives a
simulation, a Ray cluster and real machines. After each round it writes a checkpoint; a killed run continues from it
with identical results. Cross-cutting features attach as hooks (`fedpeft.rounds.hooks`); the loop depends on none of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from fedpeft.aggregation.aggregator import Aggregator, create_aggregator
from fedpeft.communication.messages import Report
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.machine.json_values import convert_to_plain
from fedpeft.machine.memory import trim
from fedpeft.reporting.observer import Observer
from fedpeft.rounds.clock import Clock
from fedpeft.rounds.collectors import UpdateCollector
from fedpeft.rounds.dispatch import Broadcast
from fedpeft.rounds.evaluation import OwnRows, ask_own_rows
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.hooks import EndOfRun, NotesReports, RoundHook
from fedpeft.rounds.progress import RunStore, ServerState
from fedpeft.rounds.questions import Questions, select_kept_state
from fedpeft.rounds.results import create_round_result
from fedpeft.rounds.round_log import RoundLog, StartLog
from fedpeft.rounds.sampling import Sampler
from fedpeft.wiring.section_lines import compute_section
from fedpeft.wiring.setup import Setup

Prepare = Callable[
    [Callable[[RoundPlan, ServerState], RoundPlan], Callable[[Report], None]], tuple[ServerState, StartLog]
]


def never_stop() -> bool:
    """Return False: nothing stops the run early."""
    return False


class Server:
    """The rounds of a run.

    Args:
        setup: the parts of the run.
        transport: how the server reaches its clients.
        sampler: draws the cohorts.
        store: the files of the run.
        observer: receives messages about the run.
        hooks: the features of the run in their order (`fedpeft.rounds.features`); one of them is the collector.
        prepare: returns the state before round 1 and the log of its preparation, given a function that changes its plan
            and one that receives reports.
        stopping: called before each round; returns whether the run should end here. It can be resumed.

    Attributes:
        early_end: why the run has ended before its last round; empty: it has not.
    """

    def __init__(
        self,
        setup: Setup,
        transport: Transport,
        sampler: Sampler,
        store: RunStore,
        observer: Observer,
        hooks: Sequence[RoundHook],
        prepare: Prepare,
        stopping: Callable[[], bool] = never_stop,
    ) -> None:
        """Hold the parts of the run, and find the collector among the hooks."""
        self.setup, self.transport, self.sampler, self.store = setup, transport, sampler, store
        self.observer, self.hooks, self.prepare, self.stopping = observer, hooks, prepare, stopping
        self.noting = [hook for hook in hooks if isinstance(hook, NotesReports)]
        self.early_end = ""
        (self.collector,) = (hook for hook in hooks if isinstance(hook, UpdateCollector))

    def run(self) -> ServerState:
        """Run all rounds that are left, and return the state that they lead to."""
        saved = self.store.checkpoints.load()
        self.store.restore(saved)
        for hook in self.hooks:
            hook.open(saved)
        state = self.start() if saved is None else saved
        self.observer.begin_rounds(self.setup.rounds, state.round)
        while self.can_continue(state):
            for hook in self.hooks:
                state = hook.before_round(state)
            try:
                plan = self.select(state)
            except EndOfRun as end:
                self.end_early(str(end))
                break
            self.observer.begin_part()
            state, log = self.round(plan, state)
            self.commit(state)
            if self.observer.round_done(log.result) and state.round < self.setup.rounds:
                self.early_end = "the caller asked for it after this round"
                break
        return state

    def round(self, plan: RoundPlan, before: ServerState) -> tuple[ServerState, RoundLog]:
        """Run one round, and return the state after it and its log."""
        broadcast = Broadcast(self.setup, before, self.transport.remote, plan.steps)
        log = RoundLog(plan, broadcast, Clock(), self.note_report)
        self.transport.publish(lambda: broadcast.create_digests("train", plan.number))
        log.aggregation = self.collector.collect(log, before, self.aggregator(plan, before))
        after = before.after(log.aggregation, log.received, broadcast.downlink.made, self.setup.clients)
        self.store.bases.put(after.residual.version, after.residual.total)
        log.clock.note_step()
        for hook in self.hooks:
            after = hook.after_step(before, after, log)
        traffic = self.collector.measure_traffic(log)
        log.result = create_round_result(before, log, traffic)
        for hook in self.hooks:
            hook.measure(after, log)
        clients = [convert_to_plain(result.line()) for result in log.received.results]
        lines = {"clients.jsonl": clients, "rounds.jsonl": [convert_to_plain(asdict(log.result))], **log.lines}
        counters = after.counters.after(traffic, log.result.rejected, log.clock.seconds)
        return self.complete(replace(after, lines=lines, counters=counters)), log

    def start(self) -> ServerState:
        """Prepare the state before round 1, and commit it."""
        state, log = self.prepare(self.plan, self.note_report)
        for hook in self.hooks:
            state = hook.after_start(state, log)
        lines = log.lines
        if log.result is not None:
            lines = {
                "rounds.jsonl": [convert_to_plain(asdict(replace(log.result, seconds=log.clock.seconds)))],
                **lines,
            }
        state = self.complete(replace(state, lines=lines))
        self.commit(state)
        return state

    def can_continue(self, state: ServerState) -> bool:
        """Return whether there is a next round, and tell the user why there is none."""
        if state.round >= self.setup.rounds or self.stopping():
            return False
        for hook in self.hooks:
            if reason := hook.ends(state):
                self.end_early(reason)
                return False
        return True

    def end_early(self, reason: str) -> None:
        """Keep the reason for summary.json, and tell the user."""
        self.early_end = reason
        self.observer.say(reason)

    def select(self, state: ServerState) -> RoundPlan:
        """Draw the cohort of the next round; what it costs is charged before anything is sent.

        Raises:
            EndOfRun: a hook ends the run.
        """
        number = state.round + 1
        cohort = self.transport.under_way(number) or self.sampler.draw(self.setup.config.seed, number)
        return self.plan(RoundPlan(number, cohort), state)

    def plan(self, plan: RoundPlan, state: ServerState) -> RoundPlan:
        """Have the hooks change the plan of a round, or of the preparation; privacy charges it."""
        plan = replace(plan, digest=lambda: state.compute_digest(*(hook.fingerprint() for hook in self.hooks)))
        for hook in self.hooks:
            plan = hook.select(plan, state)
        return plan

    def aggregator(self, plan: RoundPlan, state: ServerState) -> Aggregator:
        """Return what takes the updates of a round."""
        setup = self.setup
        optimizer = setup.server_optimizer.slow_down(state.standing.rate)
        given = setup.strategy, optimizer, setup.layout, state.adapter, plan.number, setup.config.seed
        taking = create_aggregator(*given, self.store.waiting, setup.factor_view, state.learned)
        for hook in self.hooks:
            taking = hook.aggregator(taking, plan, state)
        return taking

    def note_report(self, report: Report) -> None:
        """Have the hooks take note of a report."""
        for hook in self.noting:
            hook.note_report(report)

    def complete(self, state: ServerState) -> ServerState:
        """Return the state to save, once hooks have written what must exist before the checkpoint."""
        for hook in self.hooks:
            state = hook.before_commit(state)
        return replace(state, hooks={hook.name: saved for hook in self.hooks if (saved := hook.get_checkpoint())})

    def commit(self, state: ServerState) -> None:
        """Record a round: it counts once its checkpoint is on the disk."""
        self.store.commit(state)
        trim()

    def sections(self, state: ServerState) -> dict[str, Mapping[str, Any]] | None:
        """Return the sections of the hooks for summary.json, by name; None: no hook has one."""
        sections = {}
        for hook in self.hooks:
            name = hook.name or type(hook).__name__
            section = compute_section(name, partial(hook.section, state), self.observer.say)
            if section is not None:
                sections[name] = section
        return sections or None

    def evaluate_own_rows(self, state: ServerState) -> OwnRows:
        """Have each client evaluate the kept model, with its own tensors, on its own held-out examples."""
        kept = select_kept_state(state, self.store.bases)
        return ask_own_rows(self.setup, self.transport, kept, self.observer.say)

    def create_questions(self, state: ServerState) -> Questions:
        """Return questions to clients about the kept model, on their own held-out examples."""
        kept = select_kept_state(state, self.store.bases)
        return Questions(self.setup, self.transport, kept, self.transport.most_rows(), self.observer.say)

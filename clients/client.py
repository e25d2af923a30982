"""The client's half of a round: decode, train, clip and add noise if privacy asks for it, encode.

The same code runs in a simulation's workers, on an edge machine and inside a Flower ClientApp. It handles many
instructions at once, because the batched executor trains many clients in one pass. An edge client handles one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from fedpeft.clients.drift import Drift
from fedpeft.clients.executor import Job, Trained
from fedpeft.clients.features import attach_features
from fedpeft.clients.masking import MaskPlan
from fedpeft.clients.own_bases import train_on_own_bases
from fedpeft.clients.stages import ChoosesRows, ClientRound, ClientStage, TrainedRound, TrainsAgain
from fedpeft.clients.store import ClientStore, load_kept_state
from fedpeft.clients.workbench import Workbench

from fedpeft.aggregation.head_start import HeadStart, compute_statistics
from fedpeft.aggregation.owned_ranks import get_held_form
from fedpeft.aggregation.strategy import Strategy
from fedpeft.communication.codec import Codec
from fedpeft.communication.messages import Instruction, Report
from fedpeft.communication.uplink import Uplink
from fedpeft.data.partition import Shards, split_held_out
from fedpeft.data.task_sequence import ClientTasks
from fedpeft.errors import PayloadError
from fedpeft.machine.cores import count_usable_cores
from fedpeft.machine.hardware import map_in_threads
from fedpeft.peft.adapter import State
from fedpeft.privacy.guard import ClientPrivacy


@dataclass(frozen=True)
class ClientPlan:
    """What turns a workbench into clients; it can be pickled.

    Attributes:
        partition: the clients' shards.
        uplink: codec of updates.
        downlink: codec of the adapter on its way down.
        start: the seeded start of all tensors, which a lossy downlink counts from; empty without one.
        statistics: codec of what is sent before round 1.
        lossless: codec of the states of drift corrections.
        head: how the head starts.
        strategy: the run's strategy, for the clients' half of it.
        drift: the run's drift corrections, for the clients' half of them.
        store: folder of the clients' own state between rounds.
        held_out: share of a client's examples that it is evaluated on and does not train on.
        privacy: how what leaves a client is protected; None: not at all.
        masks: how it is masked, so that the server sees only sums; None: not at all.
        met: the task of each client over time, and the task of each example; None: there is one task.
    """

    partition: Shards
    uplink: Uplink
    downlink: Codec
    start: State
    statistics: Codec
    lossless: Codec
    head: HeadStart
    strategy: Strategy
    drift: Drift
    store: Path
    held_out: float = 0.0
    privacy: ClientPrivacy | None = None
    masks: MaskPlan | None = None
    met: ClientTasks | None = None

    def create_side(self, bench: Workbench) -> ClientSide:
        """Return the clients that one worker speaks for."""
        return ClientSide(bench, self)


class ClientSide:
    """The clients that one worker speaks for.

    Attributes:
        stages: what each round passes through (`fedpeft.clients.features`).
        reports: the last stage, which answers the server.
    """

    def __init__(self, bench: Workbench, plan: ClientPlan, more: Sequence[ClientStage] = ()) -> None:
        """Attach the features of `plan`, with `more` stages around them."""
        self.bench = bench
        self.plan = plan
        self.head = plan.head
        self.strategy = plan.strategy
        self.store = ClientStore(plan.store)
        features, self.reports = attach_features(bench, plan)
        self.stages = (*more, *features, self.reports)
        self.choosing = [stage for stage in self.stages if isinstance(stage, ChoosesRows)]
        self.training_again = [stage for stage in self.stages if isinstance(stage, TrainsAgain)]
        self.answers = {"prepare": self._prepare, "evaluate": self._evaluate, "train": self._train}
        self.answers |= self.reports.answers

    def handle(self, instructions: Sequence[Instruction]) -> list[Report]:
        """Return one report per instruction, in order; all instructions are of one kind and round.

        Raises:
            PayloadError: an unknown kind of instruction, several kinds, or illegal values.
            PrivacyError: the server asks for what the client's settings do not allow.
        """
        for instruction in instructions:
            instruction.check(len(self.bench.plan.layout.tensors))
            self.reports.check(instruction)
        kinds = sorted({instruction.kind for instruction in instructions})
        if len(kinds) != 1 or kinds[0] not in self.answers:
            asked = ", ".join(f"{kind[:40]!r}" for kind in kinds)
            raise PayloadError(
                f"FP6001 the server asks for {asked}; legal are prepare, train or evaluate, one at a time"
            )
        replayed = [self.reports.replay(instruction) for instruction in instructions]
        rest = [asked for asked, report in zip(instructions, replayed, strict=True) if report is None]
        answered = iter(self.answers[kinds[0]](rest))
        return [next(answered) if report is None else report for report in replayed]

    def check(self, instruction: Instruction) -> None:
        """Refuse a training that can't be carried out. Nothing is trained, so a ledger need not charge it yet."""
        self._begin(instruction)

    def choose_rows(self, client: int, round_number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples that a client trains on in a round, and those that it holds out of all tasks, as indices.

        Raises:
            DataError: the client has no examples to train on.
        """
        rows, apart = split_held_out(
            self.plan.partition.shard(client), self.plan.held_out, self.bench.plan.seed, client
        )
        for stage in self.choosing:
            rows = stage.choose_rows(rows, client, round_number)
        return rows, apart

    def _prepare(self, instructions: Sequence[Instruction]) -> list[Report]:
        return [self._report_statistics(instruction) for instruction in instructions]

    def _evaluate(self, instructions: Sequence[Instruction]) -> list[Report]:
        return [self.reports.report_evaluation(self._begin(instruction)) for instruction in instructions]

    def _train(self, instructions: Sequence[Instruction]) -> list[Report]:
        started = time.perf_counter()
        rounds: Sequence[ClientRound] = [self._begin(instruction) for instruction in instructions]
        train = partial(train_on_own_bases, self.bench)
        results = train(rounds)
        for stage in self.training_again:
            rounds = stage.second_pass(rounds, train)
        each = (time.perf_counter() - started) / max(1, sum(result.steps for result in results))
        threads = count_usable_cores() if self.reports.parallel and self.bench.plan.device != "cpu" else 1
        return map_in_threads(threads, lambda r, result: self._report(r, result, each * result.steps), rounds, results)

    def _report_statistics(self, instruction: Instruction) -> Report:
        rows, _ = self.choose_rows(instruction.client, instruction.round)

        def measure() -> State:
            features, labels = self.bench.set_precision(instruction.base_precision).load_regression_data(rows)
            return compute_statistics(
                self.head, features, labels, self.bench.plan.layout.shapes["head.weight"], len(rows)
            )

        return self.reports.report_statistics(instruction, len(rows), measure)

    def _begin(self, instruction: Instruction) -> ClientRound:
        """Return the client's round, ready to be trained or evaluated; nothing is trained yet."""
        plan = self.bench.plan
        instruction.check_rank(plan.layout)
        form = get_held_form(self.strategy, plan.layout, instruction.form)
        layout = plan.layout.replace_form(form)
        rows, apart = self.choose_rows(instruction.client, instruction.round)
        job = Job(
            client=instruction.client,
            round=instruction.round,
            seed=plan.seed,
            rows=rows,
            received={},
            trained=frozenset(layout.names[i] for i in instruction.trained) or frozenset(layout.names),
            training=plan.training.replace_steps(instruction.steps),
            learning_rate=instruction.learning_rate,
            form=form,
            private=frozenset(layout.names[i] for i in instruction.private),
        )
        client_round = ClientRound(instruction, layout, job, apart, self._load(instruction))
        for stage in self.stages:
            client_round = stage.begin(client_round)
        return client_round

    def _load(self, instruction: Instruction) -> State:
        """Return the client's own state; empty if it keeps none or has none yet."""
        if not self._keeps(instruction):
            return {}
        return load_kept_state(self.store, instruction, self.reports.uses_newest_state) or {}

    def _keep(self, instruction: Instruction, state: State) -> None:
        """Store the client's state, if it has one, before its report leaves."""
        if self._keeps(instruction):
            self.store.stage(instruction.client, instruction.round, state)

    def _keeps(self, instruction: Instruction) -> bool:
        return any(stage.keeps(instruction) for stage in self.stages)

    def _report(self, begun: ClientRound, result: Trained, seconds: float) -> Report:
        client_round = TrainedRound(**vars(begun), result=result, update=result.state)
        for stage in reversed(self.stages):
            client_round = stage.finish(client_round)
        return self.reports.report_update(client_round, seconds, partial(self._keep, begun.instruction))

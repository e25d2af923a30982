"""The client's half of a round: decode, train, clip and noise (where privacy asks for it), encode.

The same code runs in a simulation's workers, on an edge machine and inside a Flower ClientApp. Many instructions are
handled at once, because the batched executor trains many clients in one pass; an edge client handles one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from fedpeft.clients.evaluating import evaluated, summand
from fedpeft.clients.executor import Job, Trained
from fedpeft.clients.features import attach_stages
from fedpeft.clients.masking import Masking, MaskPlan
from fedpeft.clients.own_bases import train_on_own_bases
from fedpeft.clients.releasing import Encoding, LocalUpdate, release
from fedpeft.clients.stages import ClientRound, ClientStage, TrainedRound
from fedpeft.clients.store import ClientStore, kept, labelled, section
from fedpeft.clients.workbench import Workbench

from fedpeft import seeds
from fedpeft.aggregation.head_start import HEADS, measured
from fedpeft.aggregation.strategy import strategies
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.messages import Instruction, Report
from fedpeft.communication.uplink import parse_uplink
from fedpeft.data.partition import Shards, held_out
from fedpeft.data.task_sequence import MetTasks
from fedpeft.errors import PayloadError, PrivacyError
from fedpeft.machine.hardware import in_threads, usable_cores
from fedpeft.peft.adapter import State
from fedpeft.privacy.engine import ClientPrivacy
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import BESIDE, Contribution


@dataclass(frozen=True)
class ClientPlan:
    """What turns a workbench into clients, as plain data.

    Attributes:
        partition: the clients' shards.
        codec: what `--codec` says, of updates.
        downlink: codec of the adapter on its way down.
        start: the seeded start of all tensors, which a lossy downlink counts from; empty without one.
        statistics: codec of what is sent before round 1.
        lossless: codec of the states of drift corrections.
        head: how the head starts.
        strategy, drift: for the clients' half of them.
        store: folder of the clients' own state between rounds.
        held_out: share of a client's rows that it does not train on, but is evaluated on.
        privacy: how what leaves a client is protected; None: not at all.
        masks: how it is masked, so that only sums are seen; None: not at all.
        met: which task a client is at when, and of which its rows are; None: there is one task.
    """

    partition: Shards
    codec: str
    downlink: str
    start: State
    statistics: str
    lossless: str
    head: str
    strategy: str
    drift: str
    store: Path
    held_out: float = 0.0
    privacy: ClientPrivacy | None = None
    masks: MaskPlan | None = None
    met: MetTasks | None = None

    def side(self, bench: Workbench) -> ClientSide:
        """The clients that one worker speaks for."""
        return ClientSide(bench, self)


class ClientSide:
    """The clients that one worker speaks for."""

    def __init__(self, bench: Workbench, plan: ClientPlan, more: Sequence[ClientStage] = ()) -> None:
        """Attach the stages of `plan`, with `more` stages around them."""
        self.bench = bench
        self.plan = plan
        self.uplink = parse_uplink(plan.codec)
        self.statistics = parse_codec(plan.statistics)
        self.head = HEADS.build(plan.head)
        self.strategy = strategies.build(plan.strategy)
        self.store = ClientStore(plan.store)
        self.guard = plan.privacy.guard() if plan.privacy else None
        self.masking = Masking(plan.masks, plan.store, bench.plan.seed) if plan.masks else None
        self.stages = (*more, *attach_stages(bench, plan, self.masking))

    def handle(self, instructions: Sequence[Instruction]) -> list[Report]:
        """One report per instruction, in order; all instructions are of one kind and round.

        Raises:
            PayloadError: of a kind that this version does not know, of several kinds, or with illegal values.
        """
        for instruction in instructions:
            instruction.check(len(self.bench.plan.layout.tensors))
            self._check_masked(instruction)
        kinds = {instruction.kind for instruction in instructions}
        if kinds == {"sum"} and self.masking is not None:
            return [self.masking.answer(instruction) for instruction in instructions]
        if self.masking is not None and len(instructions) == 1:
            before = self.masking.repeated(instructions[0])
            if before is not None:
                return [before]
        if kinds == {"prepare"}:
            return [self._prepare(instruction) for instruction in instructions]
        if kinds == {"evaluate"}:
            return [self._evaluate(instruction) for instruction in instructions]
        if kinds == {"train"}:
            return self._train(instructions)
        asked = ", ".join(sorted(f"{kind[:40]!r}" for kind in kinds))
        raise PayloadError(
            f"FP6001 the server asks for {asked}; this version knows prepare, train or evaluate, one at a time"
        )

    def check(self, instruction: Instruction) -> None:
        """Refuse a training that can't be carried out; nothing is trained, so that a ledger need not charge it yet."""
        self._begin(instruction)

    def _check_masked(self, instruction: Instruction) -> None:
        """Refuse to say without masks what is to be summed, and to sum what others don't."""
        if instruction.asks and self.masking is not None and self.masking.identity is not None:
            raise PrivacyError(
                "FP7001 the server asks a real client a question, which it answers no sums under masks to"
            )
        stepped = instruction.kind in ("prepare", "train") or bool(instruction.asks)
        masked = instruction.step if stepped else 3 * (instruction.kind == "sum")
        if masked != (0 if self.masking is None else 3):
            how = "without masks" if self.masking is not None else "for a secure sum"
            raise PrivacyError(
                f"FP7002 the server asks a client to {instruction.kind} {how}, which its settings don't say"
            )

    def choose_rows(self, client: int, round_number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the examples that a client trains on in a round, and those it holds out of all tasks, as indices.

        Raises:
            DataError: it has none to train on.
        """
        rows, apart = held_out(self.plan.partition.shard(client), self.plan.held_out, self.bench.plan.seed, client)
        for stage in self.stages:
            rows = stage.choose_rows(rows, client, round_number)
        return rows, apart

    def _prepare(self, instruction: Instruction) -> Report:
        started = time.perf_counter()
        rows, _ = self.choose_rows(instruction.client, instruction.round)
        told = len(rows)

        def statistics_of() -> State:
            features, labels = self.bench.at(instruction.base_precision).regressed(rows)
            return measured(self.head, features, labels, self.bench.plan.layout.shapes["head.weight"], told)

        if self.masking is not None:

            def contribution(announced: Announcement) -> Contribution:
                asked = announced.numbers > BESIDE or announced.size
                sums = self.head.additive(statistics_of()) if asked else {}
                sums = sums if self.guard is None else self.guard.mechanism.start_summand(sums)
                return Contribution(self._weight(told), told, statistics=sums)

            return self.masking.add(instruction, contribution)
        statistics = statistics_of()
        if self.guard is not None:
            statistics = self.guard.started(statistics, (instruction.attempt, instruction.client))
            told = 1 if self.guard.mechanism.silent else told
        seed = seeds.integer(self.bench.plan.seed, "statistics", instruction.client)
        payload = self.statistics.encode(statistics, seed=seed, weights=self.head.importance(statistics))
        return Report(instruction.client, 0, payload, rows=told, seconds=time.perf_counter() - started)

    def _evaluate(self, instruction: Instruction) -> Report:
        client_round = self._begin(instruction)
        if self.masking is not None:
            given = summand(self.bench, client_round)
            return self.masking.add(instruction, lambda _: given)
        return evaluated(self.bench, client_round)

    def _train(self, instructions: Sequence[Instruction]) -> list[Report]:
        started = time.perf_counter()
        rounds: Sequence[ClientRound] = [self._begin(instruction) for instruction in instructions]
        train = partial(train_on_own_bases, self.bench)
        results = train(rounds)
        for stage in self.stages:
            rounds = stage.second_pass(rounds, train)
        each = (time.perf_counter() - started) / sum(result.steps for result in results)
        threads = 1 if self.bench.plan.device == "cpu" or self.masking is not None else usable_cores()
        return in_threads(threads, lambda r, result: self._report(r, result, each * result.steps), rounds, results)

    def _begin(self, instruction: Instruction) -> ClientRound:
        """Return the client's round, ready to be trained or evaluated; nothing is trained yet."""
        plan = self.bench.plan
        instruction.check_rank(plan.layout)
        form = self.strategy.held_form(plan.layout, instruction.form)
        layout = plan.layout.with_form(form)
        rows, apart = self.choose_rows(instruction.client, instruction.round)
        job = Job(
            client=instruction.client,
            round=instruction.round,
            seed=plan.seed,
            rows=rows,
            received={},
            trained=frozenset(layout.names[i] for i in instruction.trained) or frozenset(layout.names),
            training=plan.training.of_steps(instruction.steps),
            learning_rate=instruction.learning_rate,
            form=form,
        )
        client_round = ClientRound(instruction, layout, job, apart, self._load(instruction))
        for stage in self.stages:
            client_round = stage.begin(client_round)
        return client_round

    def _keeps(self, instruction: Instruction) -> bool:
        return self.uplink.remembers or any(stage.keeps(instruction) for stage in self.stages)

    def _load(self, instruction: Instruction) -> State:
        """Return the client's own state; empty: it has none yet, or keeps none."""
        if not self._keeps(instruction):
            return {}
        return kept(self.store, instruction, self.masking is not None and self.masking.identity is not None) or {}

    def _report(self, begun: ClientRound, result: Trained, seconds: float) -> Report:
        client_round = TrainedRound(**vars(begun), result=result, update=result.state)
        for stage in reversed(self.stages):
            client_round = stage.finish(client_round)
        job, result, state = client_round.job, client_round.result, client_round.state
        if self.masking is not None:
            if self._keeps(begun.instruction):
                self.store.stage(job.client, job.round, state)
            handed = client_round.hand_in(client_round.update)
            handed = {name: handed[name] for name in client_round.layout.names if name in handed}
            given = Contribution(self._weight(result.rows), result.rows, result.loss, handed)
            return self.masking.add(begun.instruction, lambda _: given)
        try:
            payload, memory = self._released(client_round)
        except PayloadError as error:
            return Report(job.client, job.round, b"", result.rows, result.steps, seconds=seconds, error=str(error))
        if self._keeps(begun.instruction):
            self.store.stage(job.client, job.round, state | labelled("feedback", memory))
        told = result.rows, result.steps, result.loss, seconds
        correction, used = client_round.correction, client_round.used
        return Report(job.client, job.round, payload, *told, correction=correction, used=used)

    def _weight(self, rows: int) -> float:
        """Of a client's update in a sum under masks, which it applies itself."""
        return float(rows) if self.masking is not None and self.masking.by_rows else 1.0

    def _released(self, client_round: TrainedRound) -> tuple[bytes, State]:
        """The payload, and the memory of what it leaves out; what stays with the client has no say in it."""
        job, asked = client_round.job, client_round.instruction
        own = LocalUpdate(
            client_round.update,
            client_round.exchanged(job.received),
            client_round.exchanged(client_round.result.state),
            client_round.layout,
        )
        encoding = Encoding(
            memory=section(client_round.state, "feedback"),
            bits=asked.bits,
            seed=seeds.integer(job.seed, "codec", job.round, job.client),
            turn=job.round // self.strategy.kinds(self.bench.plan.layout) + job.client,
        )
        ids = job.round, asked.attempt, job.client
        return release(own, self.uplink, self.guard, ids, encoding, client_round.hand_in)

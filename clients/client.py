"""The client's half of a round: decode, train, clip and noise (where privacy asks for it), encode.

The same code runs in a simulation's workers, on an edge machine and inside a Flower ClientApp. Many instructions are
handled at once, because the batched executor trains many clients in one pass; an edge client handles one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fedpeft.clients.drift import SHARES, flattened, parse_drift, unflattened
from fedpeft.clients.evaluating import evaluated, summand
from fedpeft.clients.executor import Job, RowPrivacy, Trained
from fedpeft.clients.label_shift import offsets, only
from fedpeft.clients.masking import Masking, MaskPlan
from fedpeft.clients.personal import PERSONAL, personal_job
from fedpeft.clients.releasing import Encoding, LocalUpdate, release
from fedpeft.clients.rule_half import begun, handed_in
from fedpeft.clients.store import ClientStore, kept, labelled, section
from fedpeft.clients.workbench import Workbench
from torch import Tensor

from fedpeft import seeds
from fedpeft.aggregation.factors import leading_ranks
from fedpeft.aggregation.head_start import HEADS, measured
from fedpeft.aggregation.strategy import Strategy, strategies
from fedpeft.aggregation.whitening import Whitening
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode_whole, whole
from fedpeft.communication.downlink import Arrival, Arrivals, start_for
from fedpeft.communication.messages import Instruction, Report
from fedpeft.communication.release import check_released
from fedpeft.communication.uplink import parse_uplink
from fedpeft.data.partition import Shards, held_out
from fedpeft.data.task_sequence import MetTasks
from fedpeft.errors import DataError, PayloadError, PrivacyError
from fedpeft.machine.hardware import in_threads, usable_cores
from fedpeft.peft.adapter import ClientForm, Layout, State, difference, held_in
from fedpeft.privacy.engine import ClientPrivacy
from fedpeft.privacy.noise import read_key
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import BESIDE, Contribution

WALKED = "walk/steps"
"""What a client calls the number of steps that it has made, among its own state."""


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


@dataclass(frozen=True)
class _Task:
    """An instruction, understood: the job, and the client's own state that goes with it, if it `keeps` any."""

    instruction: Instruction
    layout: Layout
    job: Job
    private: frozenset[str]
    state: State
    keeps: bool


class ClientSide:
    """The clients that one worker speaks for."""

    def __init__(self, bench: Workbench, plan: ClientPlan) -> None:
        self.bench = bench
        self.plan = plan
        self.uplink = parse_uplink(plan.codec)
        self.arrivals = Arrivals(parse_codec(plan.downlink))
        self.statistics = parse_codec(plan.statistics)
        self.lossless = parse_codec(plan.lossless)
        self.head = HEADS.build(plan.head)
        self.strategy = strategies.build(plan.strategy)
        self.drift = parse_drift(plan.drift)
        self.store = ClientStore(plan.store)
        self.guard = plan.privacy.guard() if plan.privacy else None
        self.privacy = self.guard.mechanism if self.guard else None
        self.masking = Masking(plan.masks, plan.store, bench.plan.seed) if plan.masks else None

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
        self._task(instruction)

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

    def _rows(self, client: int, round: int) -> tuple[np.ndarray, np.ndarray]:
        """The client's rows to train on in a round, and those held out, of whatever task.

        Raises:
            DataError: it has none of the task that it is at.
        """
        plan, seed = self.plan, self.bench.plan.seed
        rows, apart = held_out(plan.partition.shard(client), plan.held_out, seed, client)
        if plan.met is None:
            return rows, apart
        current = plan.met.current(rows, client, round, seed)
        if not len(current):
            name = plan.met.sequence.names[plan.met.at(client, round, seed)]
            raise DataError(f"FP3001 client {client} has no row of the task {name} to train on; give clients more rows")
        return current, apart

    def _prepare(self, instruction: Instruction) -> Report:
        started = time.perf_counter()
        rows, _ = self._rows(instruction.client, instruction.round)
        told = len(rows)

        def statistics_of() -> State:
            features, labels = self.bench.at(instruction.base_precision).regressed(rows)
            return measured(self.head, features, labels, self.bench.plan.layout.shapes["head.weight"], told)

        if self.masking is not None:

            def contribution(announced: Announcement) -> Contribution:
                asked = announced.numbers > BESIDE or announced.size
                sums = self.head.additive(statistics_of()) if asked else {}
                sums = sums if self.privacy is None else self.privacy.start_summand(sums)
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
        _, rows = self._rows(instruction.client, instruction.round)
        task = self._task(instruction)
        state = task.job.received | section(task.state, PERSONAL)
        if (form := task.job.form) is not None:  # in which it holds what it was sent
            instruction = replace(instruction, rank=form.rank, alpha=form.alpha)
        if self.masking is not None:
            given = summand(self.bench, instruction, state, rows)
            return self.masking.add(task.instruction, lambda _: given)
        return evaluated(self.bench, instruction, state, rows, task.job.rows)

    def _train(self, instructions: Sequence[Instruction]) -> list[Report]:
        started = time.perf_counter()
        tasks = [self._task(i) for i in instructions]
        results = self._trained(tasks)
        if (pull := self.strategy.personal_pull) is not None:
            own = self._trained([replace(t, job=personal_job(t.job, section(t.state, PERSONAL), pull)) for t in tasks])
            tasks = [replace(t, state=t.state | labelled(PERSONAL, r.state)) for t, r in zip(tasks, own, strict=True)]
        each = (time.perf_counter() - started) / sum(r.steps for r in results)
        threads = 1 if self.bench.plan.device == "cpu" or self.masking is not None else usable_cores()
        return in_threads(threads, lambda t, r: self._report(t, r, each * r.steps), tasks, results)

    def _trained(self, tasks: Sequence[_Task]) -> list[Trained]:
        """The results of the tasks, in order; clients whose bases have one precision are trained together."""
        results: dict[int, Trained] = {}
        for precision in dict.fromkeys(task.instruction.base_precision for task in tasks):
            bench = self.bench.at(precision)
            bench.rebase(tasks[0].instruction.base)
            group = [task for task in tasks if task.instruction.base_precision == precision]
            for task, result in zip(group, bench.executor.train([task.job for task in group]), strict=True):
                if not task.job.sums_gradients:
                    result = replace(result, state=held_in(result.state, task.instruction.adapter_precision))
                results[task.job.client] = result
        return [results[task.job.client] for task in tasks]

    def _task(self, instruction: Instruction) -> _Task:
        plan = self.bench.plan
        instruction.check_rank(plan.layout)
        form = self.strategy.held_form(plan.layout, instruction.form)
        layout = plan.layout.with_form(form)
        names = layout.names
        trained = frozenset(names[i] for i in instruction.trained) if instruction.trained else frozenset(names)
        private = frozenset(names[i] for i in instruction.private)
        shapes = {name: layout.shapes[name] for name in trained - private}
        server_states = self.drift.decode(instruction.correction, shapes)
        state: State | None = None
        training = plan.training.of_steps(instruction.steps) if instruction.steps else plan.training
        walks = training.walks and not (self.privacy is not None and self.privacy.per_example)  # which draws its rows
        beside = self.drift.keeps or self.uplink.remembers or self.strategy.personal_pull is not None
        keeps = bool(private or beside or not self.arrivals.codec.lossless or walks)
        if keeps:
            state = kept(self.store, instruction, self.masking is not None and self.masking.identity is not None)
        state = state or {}
        sent = self._arrival(instruction, layout, section(state, "held"))
        check_released(instruction, sent.compared, private, partial(self._shrink, form))
        received = held_in(sent.state, instruction.adapter_precision) | section(state, "private")
        state = state | labelled("held", sent.moved)
        job = Job(
            client=instruction.client,
            round=instruction.round,
            seed=plan.seed,
            rows=self._rows(instruction.client, instruction.round)[0],
            received=whole(received, layout.shapes),
            trained=trained,
            training=training,
            learning_rate=instruction.learning_rate,
            form=form,
            corrections=self.drift.acting(server_states, unflattened(section(state, "drift"))),
            offsets=self._offsets(instruction),
            walked=int(state[WALKED]) if WALKED in state else 0 if walks else None,
        )
        job = begun(job, self.strategy, layout, self._ranks(instruction))
        job = self._protected(job, instruction)
        return _Task(instruction, layout, job, private, state, keeps)

    def _ranks(self, instruction: Instruction) -> tuple[int, ...]:
        """Of those that the client holds, the ranks that it trains, where that is not all of them."""
        layout, form = self.bench.plan.layout, instruction.form
        if self.strategy.held_form(layout, form) == form:
            return ()
        return self.strategy.ranks(layout, form, self.bench.plan.seed, instruction.round, instruction.client)

    def _offsets(self, instruction: Instruction) -> Tensor | None:
        """What is added to the client's logits in training."""
        met, plan = self.plan.met, self.bench.plan
        if instruction.kind == "train" and met is not None and plan.classes:
            task = met.at(instruction.client, instruction.round, plan.seed)
            return only(met.sequence.competing(task), plan.classes)
        if instruction.kind != "train" or not instruction.told:
            return None
        if self.privacy is not None and self.privacy.whitens:
            return None
        if self.privacy is not None and self.privacy.per_example:
            raise PrivacyError(
                "FP7003 the server asks for a loss in which a row changes that of others; it is not protected"
            )
        if not self.bench.plan.classes:
            raise PayloadError("FP6003 the server sends class shares, and there are no classes")
        shares = decode_whole(instruction.told, {SHARES: (self.bench.plan.classes,)})[SHARES]
        labels = self.bench.labels(self._rows(instruction.client, instruction.round)[0])
        return offsets(labels, shares)

    def _protected(self, job: Job, instruction: Instruction) -> Job:
        """The job, with what DP-SGD needs to know where rows are protected in training."""
        plan, mechanism = self.plan.privacy, self.privacy
        if plan is None or mechanism is None or not mechanism.per_example:
            return job
        if self.bench.plan.executor != "private":
            raise PrivacyError(f"FP7004 {plan.mechanism} needs the executor with gradients per example")
        rate = mechanism.row_rate(job.training.batch_size, len(job.rows))
        rate = rate if self.masking is None else self.masking.rate(rate)
        key, attempt = read_key(plan.key), instruction.attempt
        how = mechanism.clip, plan.noise, rate, key, attempt, mechanism.summed
        expected, whitening = mechanism.divisor(job.training.batch_size, len(job.rows)), None
        if mechanism.whitens and instruction.kind == "train":
            width = self.bench.plan.layout.shapes["head.weight"][1]
            shapes = Whitening.shapes(self.head.whitened_directions(width))
            whitening = Whitening.of(decode_whole(instruction.told, shapes), width)
        return replace(job, privacy=RowPrivacy(*how, expected, whitening))

    def _shrink(self, form: ClientForm | None, state: State, rank: int) -> State | None:
        """Return what a client of a smaller rank is sent, given the `state` in this client's `form`.

        None: the rule sends it more than leading ranks, or the codec rounds each form by itself.
        """
        layout = self.bench.plan.layout
        if form is None or type(self.strategy).dispatch is not Strategy.dispatch or not self.arrivals.codec.lossless:
            return None
        smaller = self.strategy.held_form(layout, layout.form_of(rank))
        if smaller is None or len({f.scale for f in (form, smaller, layout.form) if f is not None}) > 1:
            return None  # which rounds
        return leading_ranks(state, layout.with_form(form).subset(state), smaller)

    def _arrival(self, instruction: Instruction, layout: Layout, held: State) -> Arrival:
        """What the client starts from, given what it `held` since its last recorded round."""
        start = self.plan.start
        if start:
            start = start_for(self.strategy, start, self.bench.plan.layout, instruction.form)
        return self.arrivals.of(instruction.payload, layout.shapes, start, {instruction.acknowledged: held})

    def _report(self, task: _Task, result: Trained, seconds: float) -> Report:
        job, result = handed_in(task.job, result, task.layout, self._ranks(task.instruction))
        task = replace(task, job=job, layout=self.bench.plan.layout.with_form(task.instruction.form))
        own, changes = self.drift.after(job, result)
        correction = self.drift.encode(changes, self.lossless)
        state = task.state | labelled("drift", flattened(own))
        if job.walked is not None:
            state = state | {WALKED: torch.tensor(job.walked + result.steps)}
        state = state | labelled("private", {n: t for n, t in result.state.items() if n in task.private})
        update = result.state
        if not job.sums_gradients:
            update = difference({n: t for n, t in update.items() if n not in task.private}, job.received)
            update = self.strategy.contributed(update, job.received, result.state, task.layout)
            update = self.strategy.submitted(update, task.layout, job.round)
        if self.privacy is not None and self.privacy.silent:
            result = replace(result, loss=0.0, rows=1)  # what was measured on the rows does not leave the client
        silent = self.privacy is not None or self.plan.met is not None  # of a walk over one task's rows
        used = 0 if silent else job.used(self.bench.examples.lengths)
        result = self.told(job, result)
        if self.masking is not None:
            if task.keeps:
                self.store.stage(job.client, job.round, state)
            handed = self.handed_in(job, task.layout, update)
            handed = {name: handed[name] for name in task.layout.names if name in handed}
            given = Contribution(self._weight(result.rows), result.rows, result.loss, handed)
            return self.masking.add(task.instruction, lambda _: given)
        try:
            payload, memory = self._released(task, update, result.state)
        except PayloadError as error:
            return Report(job.client, job.round, b"", result.rows, result.steps, seconds=seconds, error=str(error))
        if task.keeps:
            self.store.stage(job.client, job.round, state | labelled("feedback", memory))
        told = result.rows, result.steps, result.loss, seconds
        return Report(job.client, job.round, payload, *told, correction=correction, used=used)

    def _weight(self, rows: int) -> float:
        """Of a client's update in a sum under masks, which it applies itself."""
        return float(rows) if self.masking is not None and self.masking.by_rows else 1.0

    def _released(self, task: _Task, update: State, trained: State) -> tuple[bytes, State]:
        """The payload, and the memory of what it leaves out; what stays with the client has no say in it."""
        job = task.job
        own = LocalUpdate(
            update,
            {name: tensor for name, tensor in job.received.items() if name not in task.private},
            {name: tensor for name, tensor in trained.items() if name not in task.private},
            task.layout,
        )
        encoding = Encoding(
            memory=section(task.state, "feedback"),
            bits=task.instruction.bits,
            seed=seeds.integer(job.seed, "codec", job.round, job.client),
            turn=job.round // self.strategy.kinds(self.bench.plan.layout) + job.client,
        )
        ids = job.round, task.instruction.attempt, job.client
        return release(
            own, self.uplink, self.guard, ids, encoding, lambda update: self.handed_in(job, task.layout, update)
        )

    def handed_in(self, job: Job, layout: Layout, update: State) -> State:
        """What a client hands in of an update, which is protected by then: an honest one, all of it."""
        return update

    def told(self, job: Job, result: Trained) -> Trained:
        """What a client says of its training: an honest one, what it was."""
        return result

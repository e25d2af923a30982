"""The client's half of a round: decode, train, clip and noise (where privacy asks for it), encode.

The same code runs in a simulation's workers, on an edge machine and inside a Flower ClientApp. Many instructions are
handled at once, because the batched executor trains many clients in one pass; an edge client handles one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from fedpeft.clients.store import ClientStore
from fedpeft.clients.training import Job
from fedpeft.clients.workbench import Workbench

from fedpeft import seeds
from fedpeft.adapter import State, difference
from fedpeft.codec import Codec, decode
from fedpeft.head_start import HEADS
from fedpeft.messages import Instruction, Report
from fedpeft.partition import Partition


class ClientSide:
    """The clients that one worker speaks for."""

    def __init__(
        self,
        bench: Workbench,
        partition: Partition,
        codec: Codec,
        lossless: Codec,
        head: str,
        store: ClientStore | None = None,
    ) -> None:
        self.bench = bench
        self.partition = partition
        self.codec = codec
        self.lossless = lossless
        self.head = HEADS.build(head)
        self.store = store

    def handle(self, instructions: Sequence[Instruction]) -> list[Report]:
        """One report per instruction, in order; all instructions are of one kind."""
        if instructions[0].kind == "prepare":
            return [self._prepare(instruction) for instruction in instructions]
        return self._train(instructions)

    def _rows(self, client: int) -> np.ndarray:
        return self.partition.shard(client)

    def _prepare(self, instruction: Instruction) -> Report:
        started = time.perf_counter()
        rows = self._rows(instruction.client)
        labels = self.bench.examples.batch(rows)["labels"]
        statistics = self.head.statistics(self.bench.features(rows), labels, self.bench.plan.classes)
        payload = self.lossless.encode(statistics)  # a closed form amplifies errors
        return Report(instruction.client, 0, payload, rows=len(rows), seconds=time.perf_counter() - started)

    def _train(self, instructions: Sequence[Instruction]) -> list[Report]:
        started = time.perf_counter()
        jobs = [self._job(i) for i in instructions]
        reports = []
        results = list(self.bench.executor.train(jobs))
        steps = sum(r.steps for r in results)
        seconds = time.perf_counter() - started
        for instruction, job, result in zip(instructions, jobs, results, strict=True):
            update = difference(result.state, job.received)
            payload = self._encode(instruction, update)
            share = seconds * result.steps / steps
            reports.append(Report(job.client, job.round, payload, result.rows, result.steps, result.loss, share))
        return reports

    def _job(self, instruction: Instruction) -> Job:
        plan = self.bench.plan
        layout = plan.layout.with_form(instruction.form)
        names = layout.names
        trained = frozenset(names[i] for i in instruction.trained) if instruction.trained else frozenset(names)
        return Job(
            client=instruction.client,
            round=instruction.round,
            seed=plan.seed,
            rows=self._rows(instruction.client),
            received=decode(instruction.payload, layout.shapes),
            trained=trained,
            training=plan.training,
            learning_rate=instruction.learning_rate,
            proximal=instruction.proximal,
            form=instruction.form,
        )

    def _encode(self, instruction: Instruction, update: State) -> bytes:
        layout = self.bench.plan.layout.with_form(instruction.form)
        seed = seeds.integer(self.bench.plan.seed, "codec", instruction.round, instruction.client)
        return self.codec.encode(update, seed=seed, shapes=layout.shapes)

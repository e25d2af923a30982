"""The timed cases, the variants of each, and the interleaving of their rounds."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fedpeft.clients.workbench import Workbench

from experiments.speed.breakdown import measure_breakdown
from experiments.speed.own import plan_of
from experiments.speed.plain import PlainClient
from experiments.speed.rates import measure_gemm_rates
from experiments.speed.sides import Framework, Round, Side, Variant
from experiments.speed.workload import Case, Workload, count_operations, create_workload
from fedpeft.models.dtypes import DTYPES
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.sampling import compute_cohort_size

VARIANTS = {
    "plain": Variant("plain", "plain peft loop on each core, no federation"),
    "flower today": Variant("flower", "Flower, fp32, model loaded in each call", dtype="fp32", rebuild=True),
    "flower fp32": Variant("flower", "Flower, fp32, tuned", dtype="fp32"),
    "flower": Variant("flower", "Flower, tuned"),
    "sequential": Variant("fedpeft", "fedpeft sequential", executor="sequential"),
    "stacked": Variant("fedpeft", "batched, one client a pass", together=False, kernel=False, reuse=False),
    "together": Variant("fedpeft", "+ many clients a pass", kernel=False, reuse=False),
    "kernel": Variant("fedpeft", "+ faster products", reuse=False),
    "batched": Variant("fedpeft", "fedpeft batched (+ reuse of the frozen blocks)"),
}
"""All ways to run a round. Each fedpeft variant before the last adds one switch."""

LEVERS = ("stacked", "together", "kernel")

EXACT = Case("exactness", clients=4, rows=10, batch_size=4, dtype="fp64")
"""A case that is checked, not timed: fp64 shows the algorithm without rounding."""

TOLERANCE = {"fp64": 1e-9, "fp32": 0.02, "bf16": 0.5}
"""Largest difference of an update from that of the plain loop, relative to its norm. AdamW's first steps divide a
gradient by its own size, which turns the rounding of small gradients into differences of whole steps."""


def create_cases(clients: int, rows: int, default_rows: int) -> list[Case]:
    """Return all cases: each batch size in fp32 with adapters in two blocks or all, and the default run's round."""
    timed = [
        Case(f"fp32, batch {batch}, {where}", clients, rows, batch, "fp32", peft)
        for peft, where in (("lora(layers=2)", "two upper blocks"), ("lora(layers=0)", "all blocks"))
        for batch in (1, 4, 8)
    ]
    run = resolve_auto(parse_run(RunConfig())).config
    cohort = compute_cohort_size(run.cohort, int(run.clients))
    name = f"default run: {run.dtype}, batch {run.batch_size}, {cohort} clients"
    default = Case(name, cohort, default_rows, run.batch_size, run.dtype)
    return [*timed, default]


def choose_variants(case: Case, load: Workload, levers: bool, frameworks: Sequence[Framework]) -> dict[str, Variant]:
    """Return the variants for a case, without duplicates."""
    chosen = {name: v for name, v in VARIANTS.items() if v.framework in frameworks}
    if case.dtype != "bf16":
        chosen.pop("flower today", None)
        chosen.pop("flower fp32", None)
    seen = [plan_of(load.plan, VARIANTS["batched"])]
    for name in LEVERS:
        plan = plan_of(load.plan, VARIANTS[name])
        if not levers or plan in seen:
            chosen.pop(name, None)
        seen.append(plan)
    if not load.plan.depth and "batched" in chosen:
        chosen["batched"] = dataclasses.replace(chosen["batched"], text="fedpeft batched")
    return chosen


@dataclass
class MeasuredVariant:
    """A variant in a case.

    Attributes:
        seconds: seconds of each repeat.
        difference: relative difference of its update from the plain loop's; None without a plain loop.
        once: seconds spent before the first round on results that later rounds reuse.
        peak_share: of the GEMM peak that the executed products reach: operations / (seconds * workers * peak rate).
        whole_seconds: from the start of its processes to their end, `whole_rounds` rounds, alone on the machine.
        memory: peak proportional set size meanwhile, in bytes.
    """

    variant: Variant
    seconds: list[float]
    difference: float | None = None
    once: float = 0.0
    peak_share: float = 0.0
    whole_seconds: float | None = None
    memory: int | None = None

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return median(self.seconds)

    def compute_ratios(self, other: MeasuredVariant) -> tuple[float, float, float]:
        """Return the speed relative to `other`: median, least and most over the repeats."""
        ratios = [b / a for a, b in zip(self.seconds, other.seconds, strict=True)]
        return median(ratios), min(ratios), max(ratios)


@dataclass
class Result:
    """A finished case; `breakdown` is the batched executor's time by type of operation."""

    case: Case
    steps: int
    tokens: int
    clients_per_pass: int
    kernel: str
    variants: dict[str, MeasuredVariant]
    breakdown: dict[str, float]


@dataclass(frozen=True)
class Study:
    """The settings of the measurement.

    Attributes:
        repeats: timed rounds of each variant.
        workers: processes of each side.
        levers: also time the batched executor with some of its switches off.
        frameworks: the compared frameworks.
        whole_rounds: rounds of a whole run; 0: no whole runs.
        folder: for logs and scratch files.
        say: receives progress messages.
    """

    repeats: int
    workers: int
    levers: bool
    frameworks: tuple[Framework, ...]
    whole_rounds: int
    folder: Path
    say: Callable[[str], None]

    def measure_exactness(self) -> float:
        """Return the largest relative difference of a batched update from the plain loop's in fp64.

        Raises:
            RuntimeError: it is above the tolerance.
        """
        load = create_workload(EXACT, self.workers, self.folder)
        jobs = [load.create_job(client) for client in range(len(load.partition))]
        bench, plain = Workbench(load.plan), PlainClient(load.plan)
        try:
            if load.plan.depth:
                missing = load.plan.store(load.plan.data_key, load.plan.depth).find_missing_tiles()
                bench.fill(load.plan.data_key, load.plan.depth, missing)
            differences = [
                load.compute_difference(trained.state, plain.train(job, bench.examples))
                for job, trained in zip(jobs, bench.executor.train(jobs), strict=True)
            ]
        finally:
            self._forget(load)
        return _check_difference("the batched executor", "fp64", max(differences))

    def run(self, case: Case) -> Result:
        """Run one case: a checked warm-up round of each variant, then the timed rounds in turn.

        Raises:
            RuntimeError: a side failed, or its update differs from the plain loop's.
        """
        load = create_workload(case, self.workers, self.folder)
        chosen = choose_variants(case, load, self.levers, self.frameworks)
        measured = {name: MeasuredVariant(variant, []) for name, variant in chosen.items()}
        with self._start_sides(load, chosen) as sides:
            self._warm_up(load, measured, sides)
            names = list(chosen)
            for repeat in range(self.repeats):
                shift = repeat % len(names)
                for name in names[shift:] + names[:shift]:
                    measured[name].seconds.append(sides[chosen[name].framework].run_round(name).seconds)
                times = ", ".join(f"{name} {m.seconds[-1]:.2f} s" for name, m in measured.items())
                self.say(f"  repeat {repeat + 1}: {times}")
        self._shares(load, measured)
        if self.whole_rounds:
            for name in chosen:
                if name not in LEVERS:
                    self._measure_whole(load, name, measured[name])
        parts = self._measure_breakdown(load)
        self._forget(load)
        plan = load.plan
        return Result(case, load.steps, load.tokens, plan.clients_per_pass, plan.kernel, measured, parts)

    def _measure_breakdown(self, load: Workload) -> dict[str, float]:
        """Measure the breakdown in its own process, without other work in its memory and threads."""
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(measure_breakdown, load).result()

    def _warm_up(self, load: Workload, measured: dict[str, MeasuredVariant], sides: dict[Framework, Side]) -> None:
        after: dict[str, Round] = {}
        for name, m in measured.items():
            done = after[name] = sides[m.variant.framework].run_round(name)
            m.once = done.once
            if "plain" in after:
                m.difference = load.compute_difference(done.after, after["plain"].after)
                if not m.variant.dtype:
                    _check_difference(name, load.plan.dtype, m.difference)

    def _shares(self, load: Workload, measured: dict[str, MeasuredVariant]) -> None:
        work = count_operations(load)
        for m in measured.values():
            rate = max(measure_gemm_rates(DTYPES[m.variant.dtype or load.plan.dtype]).values()) * 1e9
            reuse = m.variant.framework == "fedpeft" and plan_of(load.plan, m.variant).depth
            m.peak_share = (work.all - (work.below if reuse else 0)) / (m.median * load.workers * rate)

    def _measure_whole(self, load: Workload, name: str, m: MeasuredVariant) -> None:
        """Run one variant alone, without results kept from earlier rounds."""
        self._forget(load)
        started = time.perf_counter()
        with self._start_sides(load, {name: m.variant}) as sides:
            side = sides[m.variant.framework]
            side.watch()
            for _ in range(self.whole_rounds):
                side.run_round(name)
        m.whole_seconds, m.memory = time.perf_counter() - started, side.peak
        self.say(f"  whole run of {self.whole_rounds} rounds: {name} {m.whole_seconds:.1f} s, {m.memory / 1e9:.2f} GB")

    @contextlib.contextmanager
    def _start_sides(self, load: Workload, variants: dict[str, Variant]) -> Iterator[dict[Framework, Side]]:
        with contextlib.ExitStack() as stack:
            frameworks = dict.fromkeys(v.framework for v in variants.values())
            yield {f: stack.enter_context(Side(f, load, variants, self.folder / f"{f}.log")) for f in frameworks}

    @staticmethod
    def _forget(load: Workload) -> None:
        """Remove the frozen blocks' stored output."""
        if load.plan.depth:
            shutil.rmtree(load.plan.store(load.plan.data_key, load.plan.depth).folder, ignore_errors=True)


def _check_difference(name: str, dtype: str, difference: float) -> float:
    if not difference <= TOLERANCE[dtype]:
        raise RuntimeError(f"the update of {name} in {dtype} is {difference:.1e} away from that of the plain loop")
    return difference

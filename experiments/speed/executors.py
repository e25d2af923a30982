"""Is the batched executor faster than another commit's? `python -m experiments.speed.executors COMMIT_A COMMIT_B`.

Both commits (names that git resolves, or folders with a checkout) and a plain peft loop of the second train the same
group of clients. They take turns in rotating order, each in its own process, which is otherwise idle. Times are
processor times of one thread, which other work on the machine changes less than wall-clock times. Ratios are taken
within a repeat. Prints medians, and the median ratio of A over B with a 95 % interval from the order statistics.

    python -m experiments.speed.executors 5a23b78 . --repeats 15 --only fp32
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Annotated

import torch
import tyro

from experiments import exit_on_error
from experiments.checkouts import Checkout, check_out
from fedpeft.errors import ConfigError, RunError
from fedpeft.models.kernels import get_cpu_name

CLIENTS = {1: 9, 4: 4, 8: 2}
"""Number of clients by batch size, at least as many as fit into a pass."""


@dataclass(frozen=True)
class Settings:
    """The measurements to run."""

    commits: Annotated[tuple[str, str], tyro.conf.Positional]
    """two commits, or folders with a checkout; the first is the reference"""
    repeats: int = 11
    """timed groups of each side, in each case"""
    rows: int = 8
    """examples per client, trained on once"""
    only: str = ""
    """only the cases whose names this regular expression finds, such as "fp32, two blocks, batch (1|4)\""""
    plain: bool = True
    """a plain loop takes part"""


@dataclass(frozen=True)
class Case:
    """A precision, PEFT method and batch size."""

    dtype: str
    where: str
    batch: int

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"{self.dtype}, {self.where}, batch {self.batch}"

    @property
    def peft(self) -> str:
        """The PEFT method."""
        return "lora(layers=2)" if self.where == "two blocks" else "lora(layers=0)"


CASES = [
    Case(dtype, where, batch)
    for dtype in ("fp32", "bf16")
    for where in ("two blocks", "all blocks")
    for batch in (1, 4, 8)
]


class Side:
    """A process that trains groups on request."""

    def __init__(self, kind: str, checkout: Checkout, folder: Path) -> None:
        """Start the process with the source of a checkout."""
        self.kind, self.checkout, self.file = kind, checkout, folder / f"{kind}-{checkout.source.name}.pt"
        environment = os.environ | {"PYTHONPATH": str(checkout.source), "OMP_NUM_THREADS": "1"}
        script = Path(__file__).with_name("one_pass.py")
        self._log = (folder / f"{kind}-{checkout.source.name}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-P", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        if not (answer := self._process.stdout.readline()):
            self._log.seek(0)
            said = self._log.read().strip().splitlines() or ["without a word"]
            raise RunError(f"the side of {self.checkout.name} has ended: {said[-1]}")
        return answer

    def prepare(self, case: Case, rows: int) -> dict[str, torch.Tensor]:
        """Make a case ready; returns the state after one group."""
        self._ask(f"case {self.kind} {case.dtype} {case.peft} {case.batch} {CLIENTS[case.batch]} {rows} {self.file}")
        state: dict[str, torch.Tensor] = torch.load(self.file)
        return state

    def seconds(self) -> float:
        """Train one group and return its seconds."""
        return float(self._ask("go"))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def compute_interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the order statistics that enclose the true median with probability 95 %, or least and most."""
    ordered, n = sorted(ratios), len(ratios)
    below, chance = 0, 0.0
    while below < n // 2 and (chance := chance + math.comb(n, below) / 2**n) <= 0.025:
        below += 1
    below = max(below - 1, 0)
    return ordered[below], ordered[n - 1 - below]


def main(settings: Settings) -> None:
    """Run the cases and print the table.

    Raises:
        ConfigError, RunError: a setting is illegal; a side fails.
    """
    chosen = [case for case in CASES if re.search(settings.only, case.name)]
    if fuller := [case.name for case in chosen if case.batch > settings.rows]:
        raise ConfigError(f"rows={settings.rows} does not fill a batch of the case {fuller[0]!r}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        first, second = (check_out(name, work / f"source-{i}") for i, name in enumerate(settings.commits))
        sides = [Side("batched", first, work), Side("batched", second, work)]
        sides += [Side("plain", second, work)] if settings.plain else []
        ratios: dict[str, list[float]] = {}
        print("| case | A, ms | B, ms | A / B | plain / B | states differ by |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for case in chosen:
            states = [side.prepare(case, settings.rows) for side in sides]
            found: list[list[float]] = [[] for _ in sides]
            for repeat in range(settings.repeats):
                for i in range(len(sides)):
                    at = (repeat + i) % len(sides)
                    found[at].append(sides[at].seconds())
            apart = max(float((states[0][n] - t).norm() / t.norm()) for n, t in states[1].items())
            group = f"{case.dtype}, {case.where}"
            ratios.setdefault(group, []).append(median(a / b for a, b in zip(found[0], found[1], strict=True)))
            cells = [f"{1e3 * median(found[0]):.0f}", f"{1e3 * median(found[1]):.0f}", format_ratio(found[0], found[1])]
            cells += [format_ratio(found[2], found[1]) if settings.plain else "", f"{apart:.0e}"]
            print(f"| {case.name} | " + " | ".join(cells) + " |", flush=True)
        for side in sides:
            side.close()
    for group, medians in ratios.items():
        print(f"geometric mean of A / B, {group}: {geometric_mean(medians):.3f}")
    print(f"{settings.repeats} repeats, {get_cpu_name()}, load average {os.getloadavg()[0]:.1f} at the end")


def format_ratio(others: Sequence[float], mine: Sequence[float]) -> str:
    """Return median and interval of the ratios as text."""
    found = [a / b for a, b in zip(others, mine, strict=True)]
    low, high = compute_interval(found)
    return f"{median(found):.2f} ({low:.2f}..{high:.2f})"


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Settings, description=__doc__))

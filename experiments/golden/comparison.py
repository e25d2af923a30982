"""All cases in two source trees, and a verdict on each."""

from __future__ import annotations

import json
import queue
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.checkouts import Checkout
from experiments.golden.cases import Case
from experiments.golden.commands import Commands
from experiments.golden.models import make_models
from experiments.golden.outcome import Difference, Outcome, find_added, find_differences
from experiments.golden.runs import RefusedError, Runs, Tree
from fedpeft.models.kernels import choose, get_cpu_name


@dataclass(frozen=True)
class Verdict:
    """The verdict on a case: whether both are the same, a sentence, and the differences beyond the tolerance."""

    case: Case
    same: bool
    text: str
    beyond: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Measure:
    """The condition under which two outcomes count as the same.

    Attributes:
        tolerance: largest relative difference, at least 0.
        ignored: a regular expression; tensors and values with matching names are ignored. Empty: none.
    """

    tolerance: float = 0.0
    ignored: str = ""

    def judge(self, case: Case, first: Outcome | str, second: Outcome | str) -> Verdict:
        """Compare two outcomes; a text is why there is none."""
        if isinstance(second, str):
            return Verdict(case, False, f"REFUSED by {'both' if isinstance(first, str) else 'the second'}: {second}")
        if isinstance(first, str):
            return Verdict(case, True, f"only the second runs it; the first says: {first}")
        first, second = self._remove_ignored(first), self._remove_ignored(second)
        found, more = find_differences(first, second), find_added(first, second)
        new = f"; {len(more)} values are new, such as {more[0]!r}" if more else ""
        if not found:
            return Verdict(case, True, f"equal: {len(first.tensors)} tensors, {len(first.values)} values{new}")
        beyond = tuple(d for d in found if d.amount > self.tolerance)
        if not beyond:
            return Verdict(case, True, f"within the tolerance: most {found[0]}, {len(found)} in all{new}")
        return Verdict(case, False, f"DIFFERS: most {found[0]}, {len(beyond)} in all{new}", beyond)

    def _remove_ignored(self, made: Outcome) -> Outcome:
        if not self.ignored:
            return made
        ignored = re.compile(self.ignored)
        return Outcome(
            {name: tensor for name, tensor in made.tensors.items() if not ignored.search(name)},
            {name: value for name, value in made.values.items() if not ignored.search(name)},
        )


def create_tree(checkout: Checkout, cache: Path) -> Tree:
    """Create a tree with an empty cache, in which commits that timed kernels find the present choice."""
    cache.mkdir(parents=True)
    known = {
        f"{get_cpu_name()} / torch {torch.__version__} / {dtype}{packed}": choose(dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for packed in ("", " / packed weights")  # commits before weights were packed chose under the shorter name
    }
    (cache / "kernels.json").write_text(json.dumps(known))
    return Tree(checkout.name, checkout.source, cache)


def compare(
    cases: Sequence[Case],
    checkouts: tuple[Checkout, Checkout],
    work: Path,
    measure: Measure,
    jobs: int,
    said: Callable[[Verdict, float], None],
) -> list[Verdict]:
    """Run all cases in both; the same case runs in one right after the other.

    Args:
        cases: to run.
        checkouts: the reference first.
        work: a folder for all that the runs write.
        measure: when outcomes are the same.
        jobs: how many cases run at the same time.
        said: is told each verdict and its seconds.
    """
    first, second = (create_tree(c, work / f"cache-{side}") for c, side in zip(checkouts, "ab", strict=True))
    make_models(work / "models")
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    verdicts: list[Verdict] = []

    def work_off() -> None:
        commands = Commands()
        runs = Runs(work, first, commands)
        try:
            while True:
                case, started = waiting.get_nowait(), time.perf_counter()
                outcomes = _attempt(runs, case, first), _attempt(runs, case, second)
                verdicts.append(measure.judge(case, *outcomes))
                said(verdicts[-1], time.perf_counter() - started)
        except queue.Empty:
            return
        finally:
            commands.close()

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(work_off) for _ in range(jobs)]:
            done.result()
    return verdicts


def _attempt(runs: Runs, case: Case, tree: Tree) -> Outcome | str:
    try:
        return runs.run(case, tree)
    except RefusedError as error:
        return str(error)

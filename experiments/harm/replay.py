"""python -m experiments.harm.replay: the state that other rules would have kept, by the recorded rounds of each run.

A rule lets a later state replace the start in two cases. Either at least two more validation examples are right, or no
fewer are right and the validation loss is lower by a share of it. The test accuracy of a run is known for its kept
state and its last one. So a rule's effect is known if it keeps the last state instead of the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments import exit_on_error
from fedpeft.study.results import Result, ResultsFile

HERE = Path(__file__).parent
FILES = (HERE / "results.jsonl", HERE / "adapters" / "results.jsonl")

VALIDATION_ROWS = {"digits": 134, "Fashion-MNIST": 600, "Reuters R8": 548}
"""Validation examples per task, for tasks with a state that differed from its start by one example."""

SHARES = (0.0, 0.02, 0.05, 0.1, 0.25)


@dataclass(frozen=True)
class Rule:
    """The condition under which a state that is no worse than the start replaces it.

    Attributes:
        share: required decrease of the validation loss, as a share of the start's; None if no decrease is enough.
        one_more: whether one more right example counts like none.
    """

    share: float | None
    one_more: bool = True

    def kept(self, states: Sequence[Mapping[str, Any]], rows: int) -> int:
        """Return the round of the state that the rule keeps."""
        start = best = states[0]
        for state in states[1:]:
            more = (state["accuracy"] - start["accuracy"]) * rows
            most = 1.5 if self.one_more else 0.5
            lower = self.share is not None and state["loss"] < start["loss"]
            lower = lower and state["loss"] <= (1 - (self.share or 0.0)) * start["loss"]
            if best is start:
                best = state if more > 1.5 or (-0.5 < more < most and lower) else best
            elif (state["accuracy"], -state["loss"]) > (best["accuracy"], -best["loss"]):
                best = state
        return int(best["round"])


def read_runs() -> Iterator[Result]:
    """Yield the finished runs that keep their best state."""
    for file in FILES:
        for run in ResultsFile(file).read():
            if run.summary is not None and "keep=last" not in run.config["measure"]:
                yield run


def find_changes(rule: Rule) -> tuple[int, list[float]]:
    """Return how many runs would leave their start, and the changes of test accuracy that are known (points)."""
    others, known = 0, []
    for run in read_runs():
        assert run.summary is not None
        states = [state for state in run.rounds if state["loss"] is not None]
        kept = rule.kept(states, VALIDATION_ROWS.get(run.point["task"], 10**6))
        if run.summary["kept_round"] or not kept:
            continue
        others += 1
        if kept == run.summary["rounds"]:
            known.append(100 * (run.summary["last_accuracy"] - run.summary["accuracy"]))
    return others, known


def main() -> None:
    """Print the table."""
    print("| right rows | loss lower by | other result | known | test accuracy (points) |\n|---|---|---:|---:|---:|")
    for one_more in (False, True):
        for share in SHARES:
            others, known = find_changes(Rule(share, one_more))
            called = "as many, or one more" if one_more else "as many"
            print(f"| {called} | {share:.0%} | {others} | {len(known)} | {fmean(known) if known else 0:+.2f} |")


if __name__ == "__main__":
    with exit_on_error():
        main()

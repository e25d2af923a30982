"""python -m experiments.to_accuracy [STAGE ...]: seconds, bytes and rounds until fixed validation levels.

Stages run in this order, by default all of them:

- search: tries settings of Flower and of the plain loop on one seed
- levels: runs Flower with its best settings, and derives the levels from its curves
- compare: runs all sides on five seeds, interleaved; refuses to begin without the levels
- report: writes the table into README.md, and the figure

Every run is a line of results.jsonl and is done only once, so an interrupted command continues. `--dry-run` lists the
missing runs with their estimated hours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import tyro

from experiments import exit_on_error
from experiments.recorded import append_line, read_lines
from experiments.to_accuracy import report
from experiments.to_accuracy.rules import SHARES, Curve, compute_area, derive_levels
from experiments.to_accuracy.settings import (
    LEVEL_SEEDS,
    SEARCH_SECONDS,
    SEARCH_SEED,
    SEEDS,
    SIDES,
    TASKS,
    TRIALS,
    Fields,
    Job,
    Trial,
    describe,
    draw_trials,
)
from fedpeft.errors import ConfigError, RunError

FOLDER = Path(__file__).parent
Stage = Literal["search", "levels", "compare", "report"]
STAGES: tuple[Stage, ...] = ("search", "levels", "compare", "report")

OWN_RUN_SECONDS, STARTUP_SECONDS, EVALUATION_SHARE = 240.0, 40.0, 0.5
"""Guesses for the estimate before a side has a recorded run: a run of a default, an opponent's startup, and the time of
an opponent's evaluations relative to its training."""


@dataclass(frozen=True)
class Settings:
    """What to run."""

    stages: Annotated[tuple[Stage, ...], tyro.conf.Positional] = STAGES
    """stages to run"""
    tasks: tuple[str, ...] = tuple(TASKS)
    """tasks"""
    sides: tuple[str, ...] = tuple(SIDES)
    """sides of the comparison"""
    workers: int = 0
    """processes of each side that train; 0: one per core"""
    dry_run: bool = False
    """list the missing runs and the estimated hours"""
    output: Path = FOLDER
    """folder of results.jsonl, levels.json, README.md and the figure"""


def main(settings: Settings, tasks: dict[str, Fields] | None = None) -> None:
    """Run the stages.

    Raises:
        ConfigError, RunError: a setting is illegal; a stage lacks what an earlier one makes; a run failed.
    """
    federations = dict(TASKS) if tasks is None else tasks
    for name, given, legal in (("tasks", settings.tasks, federations), ("sides", settings.sides, SIDES)):
        if unknown := [value for value in given if value not in legal]:
            raise ConfigError(f"--{name} {unknown[0]} is unknown; legal are {', '.join(legal)}")
    study = Study(settings, federations)
    if settings.dry_run:
        study.show_plan()
        return
    for stage in (stage for stage in STAGES if stage in settings.stages):
        if stage == "report":
            report.write(settings.output, study.read_levels(), study.lines)
        else:
            study.run(stage)


class Study:
    """The jobs of all stages, and what is recorded of them."""

    def __init__(self, settings: Settings, tasks: dict[str, Fields]) -> None:
        """Hold the settings."""
        self.settings, self.tasks = settings, tasks
        self.results, self.levels = settings.output / "results.jsonl", settings.output / "levels.json"

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The recorded runs."""
        return read_lines(self.results)

    def run(self, stage: str) -> None:
        """Do the missing runs of a stage.

        Raises:
            RunError: an earlier stage is incomplete, or a run failed that is not a trial.
        """
        from experiments.to_accuracy.sides import Runner

        jobs = self.create_jobs(stage)
        if stage == "compare":
            self.read_levels()
        with Runner(self.settings.workers or os.cpu_count() or 1, self.tasks) as runner:
            for number, job in enumerate(missing := self.find_missing(jobs), 1):
                print(f"{stage} {number} of {len(missing)}: {describe(job)}", flush=True)
                try:
                    line = runner.run(job)
                except RunError as error:
                    if stage != "search":
                        raise
                    line = job.key | {"failed": str(error)}
                append_line(self.results, line)
                print(f"  {summarize(line)}", flush=True)
        if stage == "levels":
            self.write_levels()

    def create_jobs(self, stage: str, planned: bool = False) -> list[Job]:
        """Return all jobs of a stage in their order.

        Args:
            stage: its name.
            planned: whether the first trial stands for the best one while the search is incomplete.
        """
        names = self.settings.tasks
        if stage == "search":
            trials = [(side, trial) for side in TRIALS if side in self.settings.sides for trial in draw_trials(side)]
            return [Job(stage, task, side, SEARCH_SEED, trial) for task in names for side, trial in trials]
        if stage == "levels":
            return [
                Job(stage, task, "flower", seed, self.find_best(task, "flower", planned))
                for task in names
                for seed in LEVEL_SEEDS
            ]
        return list(self._interleave(planned))

    def _interleave(self, planned: bool) -> Iterator[Job]:
        """Yield the jobs of the comparison: sides take turns, and another one begins for each seed and task."""
        sides = self.settings.sides
        for turn, seed in enumerate(SEEDS):
            for place, task in enumerate(self.settings.tasks):
                shift = (turn + place) % len(sides)
                for side in sides[shift:] + sides[:shift]:
                    yield Job(
                        "compare", task, side, seed, self.find_best(task, side, planned) if side in TRIALS else None
                    )

    def find_best(self, task: str, side: str, planned: bool = False) -> Trial:
        """Return the trial with the largest area (`experiments.to_accuracy.rules.compute_area`).

        Raises:
            RunError: the search is incomplete, and not just `planned`.
        """
        trials = draw_trials(side)
        lines = [line for line in self.lines if (line["stage"], line["task"], line["side"]) == ("search", task, side)]
        tried = [(line, Trial(**line["trial"])) for line in lines]
        if missing := [trial for trial in trials if trial not in [of for _, of in tried]]:
            if planned:
                return trials[0]
            raise RunError(
                f"{len(missing)} of {len(trials)} trials of {side} on {task} are missing; run them with: "
                "python -m experiments.to_accuracy search"
            )
        finished = [(line, trial) for line, trial in tried if "curve" in line and trial in trials]
        if not finished:
            raise RunError(f"all trials of {side} on {task} have failed; see results.jsonl")
        return max(finished, key=lambda pair: compute_area(Curve.read(pair[0]), SEARCH_SECONDS))[1]

    def find_missing(self, jobs: list[Job]) -> list[Job]:
        """Return the jobs without a line."""
        names = ("stage", "task", "side", "seed", "trial")
        done = [{name: line[name] for name in names} for line in self.lines]
        return [job for job in jobs if job.key not in done]

    def derive(self) -> dict[str, dict[str, float]]:
        """Return the levels of each task, from the runs of the stage levels."""
        curves = {
            task: [Curve.read(line) for line in self.lines if (line["stage"], line["task"]) == ("levels", task)]
            for task in self.tasks
        }
        return {task: derive_levels(own) for task, own in curves.items() if len(own) == len(LEVEL_SEEDS)}

    def write_levels(self) -> None:
        """Write the levels that follow from the recorded runs."""
        content = {
            "rule": f"start + share * (best - start) for the shares {', '.join(map(str, SHARES))}; medians over "
            f"Flower's runs of the seeds {', '.join(map(str, LEVEL_SEEDS))}",
            "levels": self.derive(),
        }
        self.levels.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def read_levels(self) -> dict[str, dict[str, float]]:
        """Read the levels of the chosen tasks.

        Raises:
            RunError: they are missing, or are not what the rule makes of the recorded runs.
        """
        if not self.levels.is_file():
            raise RunError(
                f"there is no {self.levels}, and levels come before fedpeft's own runs; make it with: "
                "python -m experiments.to_accuracy search levels"
            )
        levels: dict[str, dict[str, float]] = json.loads(self.levels.read_text(encoding="utf-8"))["levels"]
        made = self.derive()
        for task in self.settings.tasks:
            if task not in levels or levels[task] != made.get(task):
                raise RunError(
                    f"the levels of {task} in {self.levels} are not those of its runs in results.jsonl; make them "
                    "again with: python -m experiments.to_accuracy levels"
                )
        return levels

    def show_plan(self) -> None:
        """Print the missing runs of each stage and the estimated hours."""
        total = 0.0
        for stage in (stage for stage in STAGES if stage in self.settings.stages and stage != "report"):
            jobs = self.create_jobs(stage, planned=True)
            missing = self.find_missing(jobs)
            hours = sum(map(self.estimate_seconds, missing)) / 3600
            total += hours
            for job in missing:
                shown = job if stage == "search" else replace(job, trial=None)  # the best trial may be unknown yet
                print(f"{describe(shown)}: {self.estimate_seconds(job) / 60:.0f} min")
            print(f"{stage}: {len(missing)} of {len(jobs)} runs are missing, about {hours:.1f} h\n")
        print(f"in all about {total:.1f} h")

    def estimate_seconds(self, job: Job) -> float:
        """Return the expected seconds of a job: the mean of recorded runs of the same length, or a guess."""
        short = job.stage == "search"
        known = [
            line["wall_seconds"]
            for line in self.lines
            if (line["task"], line["side"], line["stage"] == "search") == (job.task, job.side, short)
            and "wall_seconds" in line
        ]
        if known:
            return fmean(known)
        if job.trial is None:
            return OWN_RUN_SECONDS
        return STARTUP_SECONDS + (1 + EVALUATION_SHARE) * job.seconds


def summarize(line: dict[str, Any]) -> str:
    """Return the outcome of a recorded run in one line."""
    if "failed" in line:
        return f"failed: {line['failed']}"
    curve = Curve.read(line)
    return (
        f"accuracy {curve.accuracy[0]:.4f} to {max(curve.accuracy):.4f}, {curve.rounds[-1]} rounds, "
        f"{curve.seconds[-1]:.0f} s, {curve.bytes[-1] / 1e6:.1f} MB, load {line['load'][0]:.1f}"
    )


if __name__ == "__main__":
    with exit_on_error():
        main(tyro.cli(Settings, description=__doc__, prog="python -m experiments.to_accuracy"))

"""Searches whose runs are made up, so that they take no time: a loss of rate and rank that falls with the rounds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fedpeft.parts.spec import parse_spec
from fedpeft.reporting.observer import RoundResult
from fedpeft.reporting.records import Records
from fedpeft.study.process import Start
from fedpeft.tune import store
from fedpeft.tune.runner import Conductor, SearchFolder
from fedpeft.tune.search_file import Search, read_search
from fedpeft.tune.trial import NOT_PASSED, Reporter, TrialPruned
from fedpeft.wiring.config import read_config

HEAD = 'trials = 12\nstartup = 4\nreduction = 2\npruner = "{pruner}"\n'
BASE = '[base]\nrounds = 4\ndataset = "tiny"\nmodel = "tiny"\ntokens = 32\nclients = 6\ncohort = 3\n'
SPACE = (
    'peft = "lora(rank={rank})"\n[search]\nlearning_rate = {low = 1e-4, high = 1e-1, log = true}\nrank = [2, 4, 8]\n'
)
TEXT = HEAD.format(pruner="halving") + BASE + SPACE


class Killed(BaseException):
    """As if the search had been killed."""


def search_of(folder: Path, text: str = TEXT) -> Search:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "search.toml"
    path.write_text(text, encoding="utf-8")
    return read_search(path)


def loss_of(settings: Path, round_number: int) -> float:
    """Of a run after a round."""
    config = read_config(settings)
    rank = parse_spec(config.peft.split(" + ")[0]).settings.get("rank", 1)
    return abs(math.log10(config.learning_rate / 5e-3)) + 0.1 * abs(math.log2(rank / 4)) + 1 / round_number


def rounds_of(start: Start) -> Iterator[RoundResult]:
    for round_number in range(1, read_config(start.settings).rounds + 1):
        loss = loss_of(start.settings, round_number)
        yield RoundResult(round_number, 3, 0, loss, loss, 1 / (1 + loss), 1, 1, 0.0, 0.0, 0.0)


@dataclass
class InProcess:
    """Does each run at once, and here.

    Attributes:
        kill: (trial, round) after which the search is killed, when that round is recorded and before it is told.
        fails: trials that fail.
        done: rounds of each trial.
    """

    kill: tuple[int, int] = (-1, 0)
    fails: tuple[int, ...] = ()
    done: dict[int, int] = field(default_factory=dict)
    _codes: dict[Path, int] = field(default_factory=dict)

    def start(self, run: Start) -> None:
        search, number = run.flags
        trial = int(number)
        if trial in self.fails:
            run.log.write_text("error: no room\n", encoding="utf-8")
            self._codes[run.folder] = 2
            return
        with suppress(TrialPruned):
            self._codes[run.folder] = NOT_PASSED
            self._rounds(run, trial, Reporter(Path(search), trial))
            self._codes[run.folder] = 0

    def _rounds(self, run: Start, trial: int, reporter: Reporter) -> None:
        run.folder.mkdir(exist_ok=True)
        records = Records(run.folder)
        reporter.catch_up(run.folder)
        known = {entry["round"] for entry in records.read("rounds.jsonl")}
        for result in rounds_of(run):
            if result.round not in known:
                records.append(
                    "rounds.jsonl", {"round": result.round, "loss": result.loss, "accuracy": result.accuracy}
                )
                if (trial, result.round) == self.kill:
                    raise Killed
                self.done[trial] = result.round
                reporter.round_done(result)
        summary = {"kept_round": result.round, "accuracy": result.accuracy, "seconds": 1.0, "parameters": 5}
        (run.folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")

    def collect_exit_codes(self) -> Mapping[Path, int]:
        codes, self._codes = self._codes, {}
        return codes

    def close(self) -> None:
        pass


def conducted(
    search: Search, folder: Path, starts: InProcess, trials: int = 0, sizes: Any = None, blocks: int = 0
) -> SearchFolder:
    """Run the search in `folder` as far as it gets."""
    folder.mkdir(parents=True, exist_ok=True)
    study = store.open_study(search, folder, every=1)
    place = SearchFolder(search, study, folder, trials or search.keys.trials, sizes, blocks)
    Conductor(place, lambda: starts, 1, Console(quiet=True)).run()
    return place

"""The fp64 numbers of small runs that every commit must reproduce on any processor, to 1e-8.

For each tensor of the last checkpoint, the norm and some entries are kept. From rounds.jsonl, clients.jsonl and
summary.json, bytes and numbers computed in fp64 are kept. The saved adapter and its scores are not, since both are
fp32.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from experiments.checkouts import REPOSITORY
from experiments.golden.cases import Case, list_cases
from experiments.golden.flags import format_words
from experiments.golden.models import make_models
from experiments.golden.outcome import Outcome, Value, read_outcome
from experiments.golden.runs import prepare
from fedpeft.errors import ConfigError, RunError
from fedpeft.simulate import main as simulate

GOLDEN = REPOSITORY / "tests" / "golden" / "runs"

TOLERANCE = 1e-8
"""Largest relative difference, as in `experiments.golden.outcome`."""

ENTRIES = 8
"""Number of entries that are kept of each tensor."""

DIGITS = 11
"""Number of digits that are kept of each number."""

NAMES = (
    *("strategy/fedit", "strategy/rolora", "strategy/fedsa_lora", "strategy/lora_fair", "strategy/fedsvd"),
    *("strategy/fedrot_lora", "strategy/fed_sb", "strategy/flasc", "strategy/fedbuff", "strategy/krum"),
    *("strategy/norm_bound", "mixed ranks/flexlora", "mixed ranks/flora", "mixed ranks/hetlora"),
    *("mixed ranks/fedex_lora", "mixed ranks/raflora", "one by one/fedit", "server optimizer/adam"),
    *("peft/dora", "peft/prefix_tuning", "codec/small", "codec/ef21", "privacy/dp_sgd"),
    *("privacy/adaptive clipping", "privacy/local_dp", "clients/scaffold", "language/fedit", "language/instruction"),
    *("strategy/lorm", "strategy/ditto", "strategy/o_lora", "feature/secure_sum", "feature/distributed_dp of rows"),
    *("feature/energy", "feature/undone steps", "feature/undone steps, fedbuff", "feature/undone steps, secure_sum"),
    *("feature/patience", "feature/ensemble, disagreement, calibration", "feature/evaluate"),
    *("resumed/ef14, adam", "resumed/user_dp"),
)
"""The cases: one for each feature that a change could break alone."""

TENSORS = re.compile(r"checkpoint/\d+ (?!started/|versions/)")
"""Names of kept tensors: the server after the last round, without its start and without versions of messages."""

VALUES = re.compile(
    r"round \d+ (client \d+ loss|(?!client \d).*)$"
    r"|summary (.*bytes|parameters|cohort|rejected|epsilon.*|dp_delta|noise_multiplier)$"
)
"""Names of kept values."""


def list_golden_cases() -> list[Case]:
    """Return the cases whose numbers are kept."""
    return [case for case in list_cases() if case.name in NAMES]


def get_file(case: Case) -> Path:
    """Return the file with the numbers of a case."""
    return GOLDEN / (re.sub(r"\W+", "-", case.name) + ".json")


def choose_positions(count: int) -> list[int]:
    """Return the kept positions of a tensor with `count` entries, spread by the golden ratio."""
    return sorted({int(i * 0.6180339887498949 % 1 * count) for i in range(min(ENTRIES, count))})


def thin_outcome(made: Outcome) -> Outcome:
    """Return the kept part of an outcome; the first entry of each tensor is its norm."""
    flat = {name: t.double().flatten() for name, t in made.tensors.items() if TENSORS.match(name)}
    tensors = {name: torch.cat([t.norm().reshape(1), t[choose_positions(len(t))]]) for name, t in flat.items()}
    return Outcome(tensors, {name: value for name, value in made.values.items() if VALUES.match(name)})


def load_outcome(case: Case) -> Outcome:
    """Load the numbers of a case from the repository."""
    stored = json.loads(get_file(case).read_text())
    tensors = {name: torch.tensor(entries, dtype=torch.float64) for name, entries in stored["tensors"].items()}
    return Outcome(tensors, stored["values"])


def keep(case: Case, made: Outcome) -> None:
    """Put the numbers of a case into the repository."""
    tensors = {name: [_round_value(entry) for entry in entries.tolist()] for name, entries in made.tensors.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(entries)}" for name, entries in tensors.items()]
    values = [f"{json.dumps(name)}: {json.dumps(_round_value(value))}" for name, value in made.values.items()]
    GOLDEN.mkdir(exist_ok=True)
    text = ",\n".join(lines), ",\n".join(values)
    get_file(case).write_text(f'{{"tensors": {{\n{text[0]}\n}}, "values": {{\n{text[1]}\n}}}}\n')


def _round_value(value: Value) -> Value:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


class LocalRuns:
    """A runner of cases in this process, where each takes a second instead of ten.

    Args:
        work: an empty folder.
    """

    def __init__(self, work: Path) -> None:
        """Make the models in the empty folder `work`."""
        self.work = work
        with _set_variables(FEDPEFT_CACHE=str(work / "cache")):
            make_models(work / "models")

    def run(self, case: Case) -> Outcome:
        """Run a case and return the kept part of its outcome.

        Raises:
            RunError: the command ended with an error, which it printed.
        """
        folder = self.work / "runs" / get_file(case).stem
        prepare(case, folder, self.work / "models")
        given = format_words(case.settings)
        with _set_variables(FEDPEFT_CACHE=str(self.work / "cache")), contextlib.chdir(folder):
            if case.kind == "resumed":
                kill_after_two_rounds(given)
                given = ["--resume", "run"]
            else:
                given += ["--output", "run"]
            if simulate(given):
                raise RunError(f"the case {case.name!r} has ended with an error, see above")
        return thin_outcome(read_outcome(folder / "run"))


def kill_after_two_rounds(flags: list[str]) -> None:
    """Start a simulation with the output folder `run` in a process group of its own, and kill it after two rounds.

    Raises:
        RunError: the simulation ended before it could be killed.
    """
    command = [sys.executable, "-m", "fedpeft.simulate", *flags, "--output", "run"]
    rounds = Path("run", "rounds.jsonl")
    with (
        open("killed.log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as run,
    ):
        while run.poll() is None and not (rounds.exists() and rounds.read_bytes().count(b"\n") > 2):
            time.sleep(0.01)
        if run.poll() is not None:
            raise RunError(
                f"the run ended with {run.returncode} before it could be killed, see {Path('killed.log').absolute()}"
            )
        os.killpg(run.pid, signal.SIGKILL)


@contextlib.contextmanager
def _set_variables(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def write(only: str = "") -> None:
    """Make the numbers of the cases whose names `only` finds anew, from the working tree.

    Raises:
        ConfigError: something in it is not committed, so that nobody could say what the numbers come from.
    """
    if subprocess.run(["git", "-C", REPOSITORY, "status", "--porcelain"], capture_output=True, text=True).stdout:
        raise ConfigError("the working tree has changes that are not committed; commit them, or put them away")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        here = LocalRuns(Path(work))
        for case in list_golden_cases():
            if not re.search(only, case.name):
                continue
            with contextlib.redirect_stdout(io.StringIO()):
                made = here.run(case)
            keep(case, made)
            print(f"{case.name:<42} {len(made.tensors)} tensors, {len(made.values)} values", flush=True)

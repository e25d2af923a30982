"""A run of any side, as a process whose rounds.jsonl is watched from outside, so that all have the same clock.

The clock starts with the process. It includes imports, the model, Ray, frozen passes and statistics before round 1, and
excludes evaluations, whose time each line states. Downloads and tokenized examples are shared by all runs. Activations
are computed anew in each run, since they are a part of fedpeft's own work.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from experiments.checkouts import REPOSITORY, check_out
from experiments.to_accuracy.rules import Curve
from experiments.to_accuracy.settings import EARLIER, Fields, Job, Order, describe
from fedpeft.errors import RunError
from fedpeft.machine.cache import get_cache_directory
from fedpeft.models.kernels import get_cpu_name

ATTEMPTS = 3
"""Runs of a job that may fetch or tokenize something: once before round 1, once later, and none after that."""

POLL_SECONDS = 0.05
"""Seconds between two looks at the record of a run, the resolution of all times."""

COMPUTED = ("frozen-", "probe-", "standing-")
"""Prefixes of the cache entries that each run computes anew."""

OPPONENTS = {"flower": "experiments.to_accuracy.flower", "plain": "experiments.to_accuracy.plain"}
"""Modules of the sides that are not runs of fedpeft."""


class ColdCache:
    """A cache with all shared entries and no computed ones."""

    def __init__(self, place: Path) -> None:
        """Link the shared entries into the new folder `place`."""
        self.place, self._shared = place, get_cache_directory()
        place.mkdir()
        for entry in self._shared.iterdir():
            if entry.is_dir() and not entry.name.startswith(COMPUTED) and entry.suffix != ".partial":
                (place / entry.name).symlink_to(entry)

    def share(self) -> list[str]:
        """Move entries that the run has fetched or tokenized to the shared cache, and return their names."""
        made = [
            entry
            for entry in self.place.iterdir()
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith(COMPUTED)
        ]
        moved = [entry for entry in made if entry.suffix != ".partial" and not (self._shared / entry.name).exists()]
        for entry in moved:
            shutil.move(entry, self._shared / entry.name)
        return [entry.name for entry in moved]


class Runner:
    """Runs jobs, each in a process of its own; a context manager.

    Args:
        workers: processes or threads of each side that train.
        tasks: the federations by name.
    """

    def __init__(self, workers: int, tasks: dict[str, Fields]) -> None:
        """Create a folder for checkouts and runs."""
        self.workers, self.tasks = workers, tasks
        self._temporary = tempfile.TemporaryDirectory()
        self._folder = Path(self._temporary.name)
        self._shared = get_cache_directory()
        self._earlier: Path | None = None

    def __enter__(self) -> Runner:
        """Return this runner."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folder."""
        self._temporary.cleanup()

    def run(self, job: Job) -> dict[str, Any]:
        """Run a job and return its line of results.jsonl; a run that had to fetch or tokenize is repeated.

        Raises:
            RunError: the process failed, wrote no evaluation, or fetched something each time.
        """
        for _ in range(ATTEMPTS):
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                cache = ColdCache(Path(folder) / "cache")
                if (line := self._run_once(job, Path(folder), cache)) is not None:
                    return line
        raise RunError(f"each of {ATTEMPTS} runs of {describe(job)} fetched or tokenized something; see {self._shared}")

    def _run_once(self, job: Job, folder: Path, cache: ColdCache) -> dict[str, Any] | None:
        """Return the line of the job; None: it was stopped, since its time included shared work."""
        words, source = self._create_command(job, folder / "run")
        environment = os.environ | {
            "PYTHONPATH": str(source),
            "FEDPEFT_CACHE": str(cache.place),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "FLWR_TELEMETRY_ENABLED": "0",
        }
        load, log = os.getloadavg()[0], folder / "log"
        with log.open("wb") as sink:
            started = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-P", *words], cwd=folder, env=environment, stdout=sink, stderr=subprocess.STDOUT
            )
            lines: list[tuple[float, dict[str, Any]]] = []
            try:
                for when, line in _watch(process, folder / "run"):
                    if not lines and cache.share():
                        return None
                    lines.append((when - started, line))
                code = process.poll()
            finally:
                _end(process)
        if cache.share():
            return None
        judged = 0.0 if job.side in OPPONENTS else compute_judged_share(str(self.tasks[job.task]["dataset"]))
        curve, evaluation = build_curve(lines, judged)
        if code or not curve.rounds:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
            raise RunError(f"{describe(job)} ended with code {code}; its last line is: {said[-1]:.300}")
        return job.key | {
            "curve": vars(curve),
            "evaluation_seconds": round(evaluation, 2),
            "wall_seconds": round(time.perf_counter() - started, 1),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "workers": self.workers,
            "cpu": get_cpu_name(),
            "commit": EARLIER if job.side == "earlier" else _find_commit(),
            "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        }

    def _create_command(self, job: Job, folder: Path) -> tuple[list[str], Path]:
        """Return the arguments of python and the folder with the source."""
        fields = job.create_fields(self.tasks[job.task]) | {"workers": self.workers}
        if job.side in OPPONENTS:
            assert job.trial is not None
            folder.mkdir()
            order = Order(fields, job.trial.server, job.seconds, str(folder))
            order.write(folder / "order.json")
            return ["-m", OPPONENTS[job.side], str(folder / "order.json")], REPOSITORY
        if job.side == "earlier" and self._earlier is None:
            self._earlier = check_out(EARLIER, self._folder / "earlier").source
        fields |= {"measure": "validation(every=1)", "output": folder}
        flags = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        source = self._earlier if job.side == "earlier" else None
        return ["-m", "fedpeft.simulate", *flags], source or REPOSITORY


def _watch(process: subprocess.Popen[bytes], folder: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield each line of a run's rounds.jsonl with the time at which it was seen, until the process or the run ends."""
    file, offset, complete = folder / "rounds.jsonl", 0, False
    while True:
        ended = process.poll() is not None  # before the file is read, so that its last lines are not missed
        when = time.perf_counter()
        if file.is_file() and file.stat().st_size > offset:
            with file.open("rb") as source:
                source.seek(offset)
                new = source.read()
            whole = new[: new.rfind(b"\n") + 1]
            offset += len(whole)
            for text in whole.splitlines():
                line = json.loads(text)
                yield when, line
                complete = _is_complete(folder, line)
        if ended or complete:
            return
        time.sleep(POLL_SECONDS)


def _is_complete(folder: Path, line: dict[str, Any]) -> bool:
    """Return whether a line is the last one of a run of fedpeft, whose scoring on test examples is not waited for."""
    config = folder / "config.toml"  # opponents have none, and end by themselves
    return config.is_file() and bool(line["round"] >= tomllib.loads(config.read_text(encoding="utf-8"))["rounds"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(children, timeout=10)[1]:
        with contextlib.suppress(psutil.Error):
            child.kill()


def compute_judged_share(dataset: str) -> float:
    """Return the share of the time after a step that fedpeft's safeguard takes, which is a part of its work.

    The safeguard and the evaluation score examples with the same code, and fedpeft's lines contain only their sum. So
    the time is divided by their numbers of examples.
    """
    from fedpeft.data.rows import load_dataset, split_off_validation
    from fedpeft.reporting.workers import JUDGED_ROWS

    evaluated = len(split_off_validation(load_dataset(dataset))[1])
    judged = min(JUDGED_ROWS, evaluated)
    return judged / (judged + evaluated)


def build_curve(lines: list[tuple[float, dict[str, Any]]], judged: float = 0.0) -> tuple[Curve, float]:
    """Return the curve of a run, and the seconds of its evaluations.

    Args:
        lines: the lines of rounds.jsonl, each with the seconds since the start at which it was seen.
        judged: share of the time after a step that is not evaluation, 0 to 1.
    """
    curve, evaluation, traffic = Curve([], [], [], []), 0.0, 0
    for when, line in lines:
        evaluation += (1 - judged) * (line["seconds"] - line["training_seconds"])
        traffic += line["uplink_bytes"] + line["downlink_bytes"]
        if line["accuracy"] is not None:
            curve.rounds.append(line["round"])
            # A line is seen with the delay of polling, which can exceed the training of a tiny round.
            before = curve.seconds[-1] if curve.seconds else -math.inf
            curve.seconds.append(max(before, round(when - evaluation, 3)))
            curve.bytes.append(traffic)
            curve.accuracy.append(line["accuracy"])
    return curve, evaluation


def _find_commit() -> str:
    """Return the commit of this source, with a plus if files differ from it."""
    asked = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=8", "--exclude=*", "--dirty=+"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"

"""The content of a run's page: its rounds so far, the present phase, its clients, the spent budget, and the log.

Rounds and clients come from the run's own records, so a resumed run shows all of them. Under privacy the page does not
show who takes part, because epsilon does not cover it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.text import Text

from fedpeft.machine.json_values import convert_to_plain
from fedpeft.reporting.observer import RoundResult, get_main_metric
from fedpeft.reporting.records import Records

LOG_LINES = 200
LATEST = 5
"""The number of latest rounds whose mean duration gives the remaining time."""

CLIENTS_SHOWN = 2000
"""The most clients on the map, those with the lowest ids; more would be unreadable."""

SHOWN = tuple(f.name for f in dataclasses.fields(RoundResult))


class LiveState:
    """The state of one run, written by its observer and read by the page; safe between threads.

    Args:
        folder: folder of the run.
        title: title of the page.
    """

    def __init__(self, folder: Path, title: str) -> None:
        """Start with an empty state that shows no clients until `watch` allows it."""
        self._records = Records(folder)
        self._title = title
        self._lock = threading.Lock()
        self._rounds: list[dict[str, Any]] = []
        self._total = 0
        self._phase: dict[str, Any] = {"name": "starting", "done": 0, "total": 0}
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._clients: dict[int, dict[str, Any]] = {}
        self._population = 0
        self._metric = "accuracy"
        self._private = True  # until `watch` sets it
        self._epsilon: Callable[[], float] | None = None
        self._spent: float | None = None
        self._connected: Callable[[], Mapping[str, int]] = dict
        self._began = time.time()
        self.version = 0
        self.ended = ""

    def watch(
        self,
        clients: int,
        private: bool,
        epsilon: Callable[[], float] | None = None,
        connected: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Set what is known once the run is set up.

        Args:
            clients: number of clients.
            private: whether participation is confidential.
            epsilon: returns epsilon of the worst account so far; None: nothing is accounted for.
            connected: returns numbers of real clients by state.
        """
        with self._lock:
            self._population, self._private, self._epsilon, self._connected = clients, private, epsilon, connected
        self._increase_version()

    def judge(self, metric: str) -> None:
        """Set the task's main `metric`."""
        with self._lock:
            self._metric = metric
        self._increase_version()

    def say(self, text: str) -> None:
        """Add a line to the log, without rich's markup."""
        with self._lock:
            self._log.append(f"{time.strftime('%H:%M:%S')}  {Text.from_markup(text).plain}")
        self._increase_version()

    def phase(self, name: str, total: int) -> None:
        """Begin a phase of `total` steps."""
        with self._lock:
            self._phase = {"name": name, "done": 0, "total": total}
        self._increase_version()

    def advance(self, steps: int) -> None:
        """Count finished steps of the phase."""
        with self._lock:
            self._phase["done"] += steps
        self._increase_version()

    def begin_rounds(self, rounds: int) -> None:
        """Begin the rounds, and load those that are recorded."""
        done = self._records.read("rounds.jsonl")
        with self._lock:
            self._total, self._rounds = rounds, done
            self._phase = {"name": "rounds", "done": 0, "total": 0}
        self._look_at_clients()
        self._increase_version()

    def set_answered(self, done: int, total: int) -> None:
        """Set how many clients of the round have answered."""
        with self._lock:
            self._phase = {"name": "clients of this round", "done": done, "total": total}
        self._increase_version()

    def round_done(self, result: RoundResult) -> None:
        """Add a recorded round."""
        with self._lock:
            self._rounds = [r for r in self._rounds if r["round"] < result.round] + [
                convert_to_plain(dataclasses.asdict(result))
            ]
        if self._epsilon is not None:
            self._spent = self._epsilon()
        self._look_at_clients()
        self._increase_version()

    def end(self, how: str) -> None:
        """End the run, with its outcome: finished, or the reason."""
        self.ended = how  # before the version, so that a reader of the new version sees the end
        self._increase_version()

    def _look_at_clients(self) -> None:
        if self._private:
            return
        latest = {line["client"]: line for line in self._records.read("clients.jsonl")}
        with self._lock:
            self._clients = {k: line for k, line in latest.items() if k < CLIENTS_SHOWN}

    def _increase_version(self) -> None:
        self.version += 1

    def take_snapshot(self) -> dict[str, Any]:
        """Return the whole state, as the page receives it."""
        with self._lock:
            last = self._rounds[-1]["round"] if self._rounds else 0
            return {
                "title": self._title,
                "metric": get_main_metric(self._metric, None, None)[0],
                "rounds": [self._describe_round(r) for r in self._rounds],
                "total": self._total,
                "phase": dict(self._phase),
                "clients": None if self._private else self._map(last),
                "population": self._population,
                "connected": dict(self._connected()),
                "epsilon": None if self._spent is None or math.isinf(self._spent) else self._spent,
                "left": self._estimate_seconds_left(last),
                "running": time.time() - self._began,
                "ended": self.ended,
                "log": list(self._log),
            }

    def _describe_round(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Return a round with its value of the main metric."""
        told = {name: line.get(name) for name in SHOWN}
        return told | {"judged": get_main_metric(self._metric, told["loss"], told["accuracy"])[1]}

    def _map(self, last: int) -> list[str]:
        """Return a word for each client, by id, about the last time that it was asked."""
        words = ["never"] * min(self._population, CLIENTS_SHOWN)
        for client, line in self._clients.items():
            if client < len(words):
                now = "now" if line["round"] == last else "before"
                words[client] = "rejected" if line.get("rejected") else now
        return words

    def _estimate_seconds_left(self, last: int) -> float | None:
        """Estimate the seconds until the last round, from the durations of the latest rounds."""
        took = [r["seconds"] for r in self._rounds[-LATEST:] if r["round"] and r.get("seconds")]
        return fmean(took) * (self._total - last) if took and self._total else None

    def to_json(self) -> str:
        """Return the snapshot as one line."""
        return json.dumps(self.take_snapshot(), allow_nan=False)

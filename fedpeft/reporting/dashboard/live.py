"""What the page of a run shows: its rounds so far, what it is doing, its clients, what is spent, and the log.

Rounds and clients are those of the run's own records, so that a run that is continued shows all of them. Under privacy
who takes part is no epsilon's matter, and is not shown.
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
"""Rounds whose mean duration the time that is left is reckoned from."""

CLIENTS_SHOWN = 2000
"""Clients on the map, those with the lowest ids; of more it would be a picture of nothing."""

SHOWN = tuple(f.name for f in dataclasses.fields(RoundResult))


class LiveState:
    """The state of one run, told by its observer and read by the page; safe between threads.

    Args:
        folder: the run's.
        title: what it is called.
    """

    def __init__(self, folder: Path, title: str) -> None:
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
        self._private = True  # until it is known that it is not
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
        """The run is set up.

        Args:
            clients: how many there are.
            private: whether who takes part is confidential.
            epsilon: that of the worst account so far; None: nothing is accounted for.
            connected: numbers of real clients by state.
        """
        with self._lock:
            self._population, self._private, self._epsilon, self._connected = clients, private, epsilon, connected
        self._increase_version()

    def judge(self, metric: str) -> None:
        """The run is judged by the task's `metric`."""
        with self._lock:
            self._metric = metric
        self._increase_version()

    def say(self, text: str) -> None:
        """A line of the log, with rich's marks."""
        with self._lock:
            self._log.append(f"{time.strftime('%H:%M:%S')}  {Text.from_markup(text).plain}")
        self._increase_version()

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` steps begins."""
        with self._lock:
            self._phase = {"name": name, "done": 0, "total": total}
        self._increase_version()

    def advance(self, steps: int) -> None:
        """Steps of it are done."""
        with self._lock:
            self._phase["done"] += steps
        self._increase_version()

    def started(self, rounds: int) -> None:
        """The rounds begin; those that are recorded are shown."""
        done = self._records.read("rounds.jsonl")
        with self._lock:
            self._total, self._rounds = rounds, done
            self._phase = {"name": "rounds", "done": 0, "total": 0}
        self._look_at_clients()
        self._increase_version()

    def set_answered(self, done: int, total: int) -> None:
        """So many clients of the round have answered."""
        with self._lock:
            self._phase = {"name": "clients of this round", "done": done, "total": total}
        self._increase_version()

    def round_done(self, result: RoundResult) -> None:
        """A round is recorded."""
        with self._lock:
            self._rounds = [r for r in self._rounds if r["round"] < result.round] + [
                convert_to_plain(dataclasses.asdict(result))
            ]
        if self._epsilon is not None:
            self._spent = self._epsilon()
        self._look_at_clients()
        self._increase_version()

    def end(self, how: str) -> None:
        """The run has ended: finished, or why not."""
        self.ended = how  # before the version: who sees that one knows of the end
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
        """All of it, as the page gets it."""
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
        """A round with its value of what the run is judged by."""
        told = {name: line.get(name) for name in SHOWN}
        return told | {"judged": get_main_metric(self._metric, told["loss"], told["accuracy"])[1]}

    def _map(self, last: int) -> list[str]:
        """A word for each client, by id: what it did when it was asked last."""
        words = ["never"] * min(self._population, CLIENTS_SHOWN)
        for client, line in self._clients.items():
            if client < len(words):
                now = "now" if line["round"] == last else "before"
                words[client] = "rejected" if line.get("rejected") else now
        return words

    def _estimate_seconds_left(self, last: int) -> float | None:
        """Seconds until the last round, as long as rounds take as the latest did."""
        took = [r["seconds"] for r in self._rounds[-LATEST:] if r["round"] and r.get("seconds")]
        return fmean(took) * (self._total - last) if took and self._total else None

    def to_json(self) -> str:
        """The snapshot as one line."""
        return json.dumps(self.take_snapshot(), allow_nan=False)

"""fedpeft's commands, executed from any source tree."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedpeft.errors import RunError

PINNED = {
    "OMP_NUM_THREADS": "1",
    "MKL_CBWR": "AUTO",  # sums do not depend on the address of an array
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "300",
}
"""The environment of every command: one thread, no GPU, no network access, wide lines."""

SECONDS = 1800.0
"""Seconds after which a command is killed."""


class Commands:
    """A starter of commands, several at a time; one thread may use it."""

    def __init__(self) -> None:
        """Start the process that forks the commands."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("forked.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | PINNED,
        )

    def start(
        self, tree: Path, module: str, words: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]
    ) -> int:
        """Start `python -m module words` in `folder` with fedpeft from `tree`; returns the process's id."""
        place = {"tree": str(tree), "folder": str(folder), "log": str(log)}
        return self._ask({"module": module, "words": list(words), "environment": dict(environment), **place})

    def wait(self, process: int, seconds: float = SECONDS) -> int:
        """Return the exit code of a started process; negative if it was killed for taking too long."""

        def end() -> None:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            return self._ask({"wait": process})
        finally:
            timer.cancel()

    def _ask(self, request: Mapping[str, Any]) -> int:
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        to.write(json.dumps(request) + "\n")
        to.flush()
        answer = back.readline()
        if not answer:
            raise RunError("the process that commands are forked from has ended, as is said above")
        return int(answer)

    def close(self) -> None:
        """End the process that commands are forked from."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

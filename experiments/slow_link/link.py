"""The line's two sides: start processes in them, and measure the line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from experiments.slow_link.bridge import ADDRESSES, Line

ROOT = Path(__file__).parents[2]


class SlowLink:
    """A running bridge with both of its network namespaces.

    Attributes:
        line: the line's properties.
    """

    def __init__(self, line: Line) -> None:
        """Start the bridge.

        Raises:
            OSError: it ended at once; the message is its last line.
        """
        self.line = line
        self._bridge = subprocess.Popen(
            [sys.executable, "-m", "experiments.slow_link.bridge", json.dumps(asdict(line))],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._bridge.stdout is not None
        assert self._bridge.stderr is not None
        first = self._bridge.stdout.readline()
        if not first:
            raise OSError((self._bridge.stderr.read().strip().splitlines() or ["the bridge ended"])[-1])
        self._namespaces: dict[str, int] = json.loads(first)["namespaces"]

    def __enter__(self) -> SlowLink:
        """Return the link."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End the bridge, and with it the namespaces."""
        self._bridge.communicate()

    def start(self, side: str, *words: object, **options: Any) -> subprocess.Popen[Any]:
        """Start a Python module with its arguments on one side of the line."""
        entry = f"--net=/proc/{self._bridge.pid}/fd/{self._namespaces[side]}"
        return subprocess.Popen(["nsenter", entry, sys.executable, "-m", *map(str, words)], **options)

    def count(self, command: str = "counts") -> dict[str, dict[str, int]]:
        """Return the packets and bytes of each direction so far."""
        assert self._bridge.stdin is not None
        assert self._bridge.stdout is not None
        self._bridge.stdin.write(f"{command}\n")
        self._bridge.stdin.flush()
        counts: dict[str, dict[str, int]] = json.loads(self._bridge.stdout.readline())
        return counts

    def cut(self, seconds: float) -> None:
        """Lose all packets for some seconds."""
        self.count(f"cut {seconds}")

    def probe(self, side: str, *words: object) -> subprocess.Popen[str]:
        """Start a probe on one side of the line."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return self.start(
            side, "experiments.slow_link.probes", *words, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ping(self, count: int) -> dict[str, float]:
        """Return loss and median round trip of pings from the clients' side."""
        return read_last(self.probe("clients", "ping", ADDRESSES["server"], count).stdout)

    def transfer(self, kind: str, connections: int, seconds: float) -> dict[str, float]:
        """Send bytes from the clients' side to the server's, and return the Mbit/s that arrive."""
        receiver = self.probe("server", "receive", kind, connections)
        assert receiver.stdout is not None
        receiver.stdout.readline()  # it listens
        self.probe("clients", "send", kind, ADDRESSES["server"], connections, seconds).wait()
        return read_last(receiver.stdout)


def read_last(stream: IO[str] | None) -> dict[str, float]:
    """Return the JSON object in the last line of a process's output."""
    assert stream is not None
    found: dict[str, float] = json.loads(stream.read().splitlines()[-1])
    return found


def verify(link: SlowLink, pings: int = 200, seconds: float = 8.0) -> dict[str, dict[str, float]]:
    """Measure the line: pings, TCP over one and four connections, and UDP faster than the line."""
    return {
        "ping": link.ping(pings),
        "tcp, 1 connection": link.transfer("tcp", 1, seconds),
        "tcp, 4 connections": link.transfer("tcp", 4, seconds),
        "udp at 20 Mbit/s": link.transfer("udp", 1, seconds / 2),
    }

"""`python -m experiments.transport.clients`: resources of a real client, by the precision of its base.

A server and its clients run as for users: processes, mutual TLS, loopback. Memory is a client's resident set, including
libraries, as on a machine of its own: the peak, and the median in the rounds. CPU seconds are a client's, from the end
of round 1. Seconds and bytes come from the server's summary.
"""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro

from experiments import write_between
from fedpeft.data.rows import load_dataset
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.models.kernels import get_cpu_name

DOCS = Path(__file__).parents[2] / "docs" / "deploy-limits.md"
BEGIN, END = "<!-- clients: begin -->", "<!-- clients: end -->"
SAMPLE_SECONDS = 0.2
PATIENCE_SECONDS = 120.0
"""Seconds that a process may take to end after the server."""


@dataclass(frozen=True)
class Settings:
    """The measurements to run."""

    dataset: str = "20newsgroups"
    """whose rows and labels to take"""
    model: str = "auto"
    """base model"""
    clients: int = 2
    """clients of each run"""
    rows: int = 48
    """examples per client"""
    rounds: int = 4
    """rounds of each run"""
    precisions: tuple[str, ...] = ("fp32", "bf16", "int8", "nf4")
    """precisions of the clients' bases"""
    device: str = "cpu"
    """device of the clients"""
    privacy: str = "dp_sgd(epsilon=8)"
    """privacy of one more run with a base in bf16; empty for none"""
    write_docs: bool = False
    """put the table into docs/deploy-limits.md"""


@dataclass(frozen=True)
class MeasuredRun:
    """The measurements of one run.

    Attributes:
        name: name of its row in the table.
        peak: the largest resident set of any client, in bytes.
        held: the largest median of a client's resident set over the rounds, in bytes.
        cpu: the most CPU seconds that a client used per round.
        summary: the server's summary.
    """

    name: str
    peak: int
    held: int
    cpu: float
    summary: dict[str, Any]


class Federation:
    """A folder with certificates and data for each client."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Create certificates and data files for all clients."""
        self.folder, self.settings = folder, settings
        authority = Authority(folder / "certs", 30)
        authority.ensure()
        authority.server(["localhost", "127.0.0.1"])
        data = load_dataset(settings.dataset)
        rows, names = data.train, data.label_names
        assert rows.labels is not None
        assert names is not None
        order = np.random.default_rng(0).permutation(len(rows))
        for k in range(settings.clients):
            authority.client(f"edge-{k}")
            chosen = order[k * settings.rows : (k + 1) * settings.rows]
            lines = [json.dumps({"text": rows.inputs[i], "label": names[rows.labels[i]]}) + "\n" for i in chosen]
            (folder / f"{k}.jsonl").write_text("".join(lines), encoding="utf-8")

    def _start(self, log: str, module: str, *words: object) -> subprocess.Popen[bytes]:
        with open(self.folder / log, "ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", module, *map(str, words)],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def run(self, name: str, precision: str, *flags: str) -> MeasuredRun:
        """Run a federation whose clients load the base in `precision`, with further flags for the server.

        Raises:
            SystemExit: a process failed. Its logs are printed.
        """
        settings, run = self.settings, re.sub(r"\W+", "-", name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        server = self._start(
            f"{run}.log", "fedpeft.serve", "--dataset", settings.dataset, "--model", settings.model, "--clients",
            settings.clients, "--dtype", "bf16", "--cohort", "all", "--rounds", settings.rounds, "--listen", address,
            "--peft", "lora(layers=2)", "--output", run, *flags,
        )  # fmt: skip
        clients = [
            self._start(
                f"{run}-{k}.log", "fedpeft.join", "--server", address, "--data", f"{k}.jsonl", "--certs",
                f"certs/clients/edge-{k}", "--state", "state", "--device", settings.device, "--threads", 1,
                "--precision", precision, "--give-up", PATIENCE_SECONDS,
            )
            for k in range(settings.clients)
        ]  # fmt: skip
        try:
            watched = self._watch(run, server, clients)
            if any(client.poll() for client in clients):  # the server would wait for the failed client
                server.terminate()
            if any(process.wait(PATIENCE_SECONDS) for process in (server, *clients)):
                logs = "\n".join(log.read_text(encoding="utf-8") for log in self.folder.glob(f"{run}*.log"))
                raise SystemExit(f"a process of the run {name!r} has failed:\n{logs}")
        finally:
            for process in (server, *clients):
                process.kill()
        summary = json.loads((self.folder / run / "summary.json").read_text(encoding="utf-8"))
        peaks = [w.peak for w in watched]
        held = [statistics.median_high(w.held) if w.held else 0 for w in watched]
        cpu = [(w.cpu[-1] - w.cpu[0]) / max(1, settings.rounds - 1) if w.cpu else 0.0 for w in watched]
        return MeasuredRun(name, max(peaks), max(held), max(cpu), summary)

    def _watch(
        self, run: str, server: subprocess.Popen[bytes], clients: list[subprocess.Popen[bytes]]
    ) -> list[ProcessPeaks]:
        """Measure each client until the server has ended."""
        watched = [ProcessPeaks() for _ in clients]
        rounds = self.folder / run / "rounds.jsonl"
        while server.poll() is None and all(client.poll() in (None, 0) for client in clients):
            begun = rounds.exists() and '"round": 1,' in rounds.read_text(encoding="utf-8")
            for client, seen in zip(clients, watched, strict=True):
                seen.look(client.pid, begun)
            time.sleep(SAMPLE_SECONDS)
        return watched


@dataclass
class ProcessPeaks:
    """Readings of a process: its peak so far, and in the rounds its resident bytes and CPU seconds."""

    peak: int = 0
    held: list[int] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def look(self, pid: int, begun: bool) -> None:
        """Take a sample; nothing once the process has ended."""
        try:
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
            process = psutil.Process(pid)
            now, used = process.memory_info().rss, process.cpu_times()
        except (OSError, psutil.Error):
            return
        if peak:
            self.peak = max(self.peak, 1024 * int(peak[1]))
        if begun and now:
            self.held.append(now)
            self.cpu.append(used.user + used.system)


def format_table(settings: Settings, found: list[MeasuredRun]) -> str:
    """Return the results as a Markdown table."""
    first = found[0].summary
    updates = 1e3 * settings.rounds * settings.clients
    rows = [
        f"| {m.name} | {m.peak / 1e6:.0f} MB | {m.held / 1e6:.0f} MB | {m.cpu:.1f} | "
        f"{m.summary['seconds_per_round']:.1f} | "
        f"{(m.summary['uplink_bytes'] - m.summary['prepare_bytes']) / updates:.0f} kB | "
        f"{m.summary['downlink_bytes'] / updates:.0f} kB |"
        for m in found
    ]
    return "\n".join(
        [
            "| base | memory of a client, peak | in the rounds | CPU seconds, a client and round | seconds a round "
            "| up, a client and round | down |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            textwrap.fill(
                f"{settings.dataset}, {first['parameters']:,} parameters trained, {settings.clients} clients at a time "
                f"of {settings.rows} rows, one thread each, {settings.rounds} rounds. {get_cpu_name()}, "
                f"{os.cpu_count()} "
                f"cores for server, clients and other work, load average {os.getloadavg()[0]:.1f} at the end: compare "
                "CPU seconds.",
                120,
            ),
            "Command: `python -m experiments.transport.clients --write-docs`.",
        ]
    )


def main() -> None:
    """Measure all precisions, print the table, and optionally write the docs."""
    settings = tyro.cli(Settings, prog="python -m experiments.transport.clients")
    with tempfile.TemporaryDirectory() as name:
        federation = Federation(Path(name), settings)
        found = [federation.run(precision, precision) for precision in settings.precisions]
        if settings.privacy:
            found.append(federation.run("bf16, dp_sgd", "bf16", "--head", "zero", "--privacy", settings.privacy))
    text = format_table(settings, found)
    print(text)
    if settings.write_docs:
        write_between(DOCS, BEGIN, END, text)


if __name__ == "__main__":
    main()

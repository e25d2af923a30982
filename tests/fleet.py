"""A server and clients as users run them, for tests: processes, certificates, loopback; and a wire between them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from fedpeft.commands.certs import main as make_certificates
from fedpeft.data.rows import load_dataset, split_validation
from fedpeft.parts.families import PARTITIONS
from fedpeft.rounds.progress import Checkpoints
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run

NAMES = ("a", "b", "c")
SETTINGS = {
    "dataset": "tiny", "clients": 3, "cohort": "all", "rounds": 2, "dtype": "fp64", "workers": 1,
    "local_work": "steps(4)",
    "optimizer": "adamw(head_rate=1.0)", "learning_rate": 0.003, "safeguard": "none",
    "measure": "validation(every=4, keep=last)",
}  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}


class Fleet:
    """A folder with certificates, shards and a configuration; starts servers and clients in it."""

    def __init__(self, folder: Path, names: tuple[str, ...] = NAMES, **settings: object) -> None:
        self.folder = folder
        self.settings = {**SETTINGS, "clients": len(names), **settings}
        self.ulimit = ""  # what the shell's ulimit is told before a server or a client starts
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.processes: list[subprocess.Popen[str]] = []
        (folder / "run.toml").write_text(RunConfig(**self.settings).to_toml())
        assert make_certificates(["--folder", str(folder / "certs"), "--clients", ",".join(names)]) == 0
        data = load_dataset("tiny")
        train, _ = split_validation(data.train, len(data.train) // 10)
        config = resolve_auto(parse_run(RunConfig(**{**self.settings, "hook": ""}))).config
        partition = PARTITIONS.build(config.partition).split(train, len(names), config.seed)
        for k, name in enumerate(names):
            rows = [{"text": train.inputs[i], "label": data.label_names[train.labels[i]]} for i in partition.shard(k)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def _start(
        self, module: str, log: str, *words: str, variables: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        limited = ["sh", "-c", f'ulimit {self.ulimit} && exec "$@"', "sh"] if self.ulimit else []
        with open(self.folder / log, "a") as output:
            process = subprocess.Popen(
                [*limited, sys.executable, "-m", module, *words],
                cwd=self.folder, env=ENVIRONMENT | (variables or {}), stdout=output,
                stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def serve(self, *words: str) -> subprocess.Popen[str]:
        """Start a server, or start it again with --resume; wait until it listens."""
        before = self.log("serve").count("listen")
        base = ["--output", "run"] if not (self.folder / "run" / "config.toml").exists() else ["--resume", "run"]
        start = [] if base[0] == "--resume" else ["run.toml", "--listen", f"127.0.0.1:{self.port}"]
        process = self._start("fedpeft.serve", "serve.log", *start, *base, *words)
        self.wait(lambda: self.log("serve").count("listen") > before, process)
        return process

    def join(
        self, name: str, *words: str, port: int = 0, variables: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        return self._start(
            "fedpeft.join", f"{name}.log", "--server", f"127.0.0.1:{port or self.port}", "--data", f"{name}.jsonl",
            "--certs", f"certs/clients/{name}", "--state", "state", "--threads", "1", *words,
            variables=variables,
        )  # fmt: skip

    def log(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text() if file.exists() else ""

    def wait(self, condition, *processes: subprocess.Popen[str], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            assert all(p.poll() is None for p in processes), self.logs()
            time.sleep(0.02)

    def rounds(self) -> list[dict]:
        file = self.folder / "run" / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def events(self, event: str) -> list[dict]:
        lines = [json.loads(line) for line in (self.folder / "run" / "serve.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()}" for p in self.folder.glob("*.log"))

    def end(self, process: subprocess.Popen[str], seconds: float = 300) -> int:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.logs()) from None


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors") | load_file(folder / "adapter/head.safetensors")


def distance(one: Path, other: Path) -> float:
    a, b = adapter(one), adapter(other)
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max()) for n in a)


def apart(made: Fleet) -> float:
    """Return the largest difference between the final states of the run and the simulation."""
    one, other = (Checkpoints(made.folder / f / "checkpoint").load() for f in ("run", "simulated"))
    assert one is not None
    assert other is not None
    assert one.round == other.round
    states = [(one.adapter, other.adapter), (one.residual.total, other.residual.total)]
    assert all(mine.keys() == theirs.keys() for mine, theirs in states)
    pairs = [(mine[n], t) for mine, theirs in states for n, t in theirs.items()]
    return max(float((a - b).abs().max()) for a, b in pairs)


class Wire(threading.Thread):
    """Carries bytes between clients and the server, and counts them.

    It can be `cut` (connections break, none come about) or `silent` (they stay, and nothing arrives).
    """

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.up = self.down = 0
        self.cut = threading.Event()
        self.silent = threading.Event()
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.start()

    def run(self) -> None:
        while True:
            near, _ = self.listener.accept()
            try:
                if self.cut.is_set():
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            self.pairs.append((near, far))
            for source, sink, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._carry, args=(source, sink, way), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                while self.silent.is_set():
                    time.sleep(0.05)
                setattr(self, way, getattr(self, way) + len(data))
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def break_all(self) -> None:
        for pair in self.pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self.pairs = []


def havoc(made: Fleet, seconds: float | None = None, least: int = 4) -> int:
    """For some `seconds` and at `least` so often, clients and the server are killed, asked to stop, and cut off.

    What is done is drawn from a seed; between two deeds none to two rounds are finished, and a moment of the next
    passes. Every round waits for all clients, so that the run can be compared with a simulation. Returns the number of
    rounds that are finished when the server has been asked to stop for the last time.
    """
    seconds = float(os.environ.get("FEDPEFT_CHAOS_SECONDS", "180")) if seconds is None else seconds
    chance = random.Random(int(os.environ.get("FEDPEFT_CHAOS_SEED", "0")))
    server = made.serve("--quorum", "1")
    wire = Wire(made.port)
    clients = {name: made.join(name, port=wire.port) for name in NAMES}
    deeds: Counter[str] = Counter()
    made.wait(made.rounds, server)
    end = time.monotonic() + seconds
    while time.monotonic() < end or sum(deeds.values()) < least:
        calm = len(made.rounds()) + chance.choice([0, 1, 1, 2])
        made.wait(lambda calm=calm: len(made.rounds()) >= calm, server)
        time.sleep(chance.uniform(0, 3))
        deed = chance.choice(["client", "client", "server", "stop", "cut"])
        deeds[deed] += 1
        if deed == "client":
            name = chance.choice(NAMES)
            clients[name].kill()
            clients[name].wait()
            clients[name] = made.join(name, port=wire.port)
        elif deed == "cut":
            wire.cut.set()
            wire.break_all()
            time.sleep(chance.uniform(0.5, 5))
            wire.cut.clear()
        else:
            server.kill() if deed == "server" else server.terminate()
            made.end(server)
            server = made.serve()
    made.wait(lambda: len(made.rounds()) > 3, server, seconds=600)
    server.terminate()
    assert made.end(server) == 0, made.logs()
    finished = len(made.rounds()) - ("head" not in made.settings)
    print(f"{finished} rounds in {seconds:.0f} s, {dict(deeds)}")
    return finished

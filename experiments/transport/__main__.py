"""`python -m experiments.transport`: rounds without training over loopback, against bare gRPC streams."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import tyro

from experiments import write_between
from experiments.transport.fleet import DOWN, UP, split_into_chunks
from fedpeft import __version__
from fedpeft.communication.flower_grid import get_node_id
from fedpeft.communication.flower_messages import write_record
from fedpeft.communication.messages import Instruction
from fedpeft.deployment.identity.authentication import Doorkeeper
from fedpeft.deployment.identity.certificates import Authority, RevocationList
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.identity.members import Roster
from fedpeft.deployment.server.event_log import Events
from fedpeft.deployment.server.grid import GrpcGrid
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.gateway import Gateway
from fedpeft.models.kernels import get_cpu_name

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@dataclass(frozen=True)
class Settings:
    """The measurements to run."""

    clients: int = 20
    """clients of a round"""
    megabytes: float = 4.0
    """payload of each, each way"""
    rounds: int = 5
    """rounds timed, after one that is not"""
    light: int = 200
    """clients connected at once, with a payload of 100 bytes"""
    write_readme: bool = False
    """put the table into the README of this experiment"""


@dataclass(frozen=True)
class Result:
    """Seconds of each round, CPU seconds of both processes per MB carried, and the server's peak memory in bytes."""

    seconds: list[float]
    cpu_per_megabyte: float
    memory: int

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.seconds)


def measure_cpu_seconds() -> float:
    """Return the CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def start_fleet(*words: object) -> subprocess.Popen[str]:
    """Start clients in their own process."""
    command = [sys.executable, "-m", "experiments.transport.fleet", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def create_server_credentials(certs: Path) -> grpc.ServerCredentials:
    """Return the server's credentials for mutual TLS."""
    own = Credentials.load_server(certs)
    return grpc.ssl_server_credentials([(own.key, own.certificate)], own.authority, require_client_auth=True)


def run_round(grid: GrpcGrid, number: int, clients: int, payload: bytes) -> float:
    """Send the payload to all clients and wait until all have sent it back; returns the seconds."""
    started = time.perf_counter()
    waiting = set(
        grid.push_messages(
            grid.create_message(
                write_record(Instruction("train", number, k, payload)), "train", get_node_id(k), str(number)
            )
            for k in range(clients)
        )
    )
    while waiting:
        waiting -= {m.metadata.reply_to_message_id for m in grid.pull_messages(waiting)}
    return time.perf_counter() - started


def run_own(folder: Path, clients: int, payload: bytes, rounds: int) -> Result:
    """Run rounds over fedpeft's grid."""
    certs = folder / "certs"
    roster = Roster(folder / f"roster-{clients}.json", clients)
    keeper = Doorkeeper(RevocationList(certs / "revoked.pem", (certs / "ca.pem").read_bytes()))
    told = v2.Description(run=roster.run, software=__version__)
    events = Events(folder / "serve.jsonl", lambda *_: None)
    gateway = Gateway(told, roster, keeper, lambda *_: len(payload) + (1 << 20), lambda _: None, events)
    gateway.start("127.0.0.1:0", create_server_credentials(certs))
    process = start_fleet(f"127.0.0.1:{gateway.port}", certs, roster.run, clients, "own", 0)
    while sum(s.connected for s in gateway.list_sessions()) < clients:
        time.sleep(0.05)
    roster.start()
    grid = GrpcGrid(gateway, 1.0, 0.0, threading.Event())
    run_round(grid, 1, clients, payload)
    before = measure_cpu_seconds()
    seconds = [run_round(grid, 2 + i, clients, payload) for i in range(rounds)]
    here = measure_cpu_seconds() - before
    memory = psutil.Process().memory_info().rss
    gateway.close("done")
    there = float(process.communicate()[0]) - measure_idle_cpu(folder, clients)
    carried = 2 * clients * len(payload) / 1e6
    return Result(seconds, here / (carried * rounds) + max(0.0, there) / (carried * (rounds + 1)), memory)


def run_bare(folder: Path, clients: int, payload: bytes, rounds: int) -> Result:
    """Send the same bytes over plain gRPC streams with the same TLS."""
    done = threading.Semaphore(0)

    async def down(_: bytes, __: Any) -> AsyncIterator[bytes]:
        for chunk in split_into_chunks(payload):
            yield chunk

    async def up(messages: AsyncIterator[bytes], _: Any) -> bytes:
        received = [chunk async for chunk in messages]
        assert sum(map(len, received)) == len(payload)
        done.release()
        return b""

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            if details.method == DOWN:
                return grpc.unary_stream_rpc_method_handler(down)
            return grpc.stream_unary_rpc_method_handler(up) if details.method == UP else None

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def start() -> tuple[Any, int]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([Handlers()])
        port = server.add_secure_port("127.0.0.1:0", create_server_credentials(folder / "certs"))
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    process = start_fleet(f"127.0.0.1:{port}", folder / "certs", "-", clients, "bare", rounds + 1)
    for _ in range(clients):
        done.acquire()
    before, started = measure_cpu_seconds(), time.perf_counter()
    for _ in range(clients * rounds):
        done.acquire()
    elapsed, here = time.perf_counter() - started, measure_cpu_seconds() - before
    there = float(process.communicate()[0]) - measure_idle_cpu(folder, clients)
    asyncio.run_coroutine_threadsafe(server.stop(None), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    carried = 2 * clients * len(payload) / 1e6
    used = here / (carried * rounds) + max(0.0, there) / (carried * (rounds + 1))
    return Result([elapsed / rounds], used, psutil.Process().memory_info().rss)


def measure_idle_cpu(folder: Path, clients: int) -> float:
    """Return the CPU seconds of a client process that only imports modules and reads keys."""
    return float(start_fleet("127.0.0.1:1", folder / "certs", "-", clients, "bare", 0).communicate()[0])


def format_table(settings: Settings, ours: Result, plain: Result, light: Result) -> str:
    """Return the results as a Markdown table."""
    size = f"{settings.clients} clients x {settings.megabytes:g} MB each way"
    rows = [
        (f"{size}, fedpeft", ours, f"{1000 * ours.cpu_per_megabyte:.2f}"),
        (f"{size}, bare gRPC streams", plain, f"{1000 * plain.cpu_per_megabyte:.2f}"),
        (f"{settings.light} clients x 100 B each way, fedpeft", light, ""),
    ]
    time_ratio = ours.median / plain.median
    cpu_ratio = ours.cpu_per_megabyte / plain.cpu_per_megabyte
    return "\n".join(
        [
            "| what | seconds a round | CPU ms per MB, both ends | server memory |",
            "|---|---|---|---|",
            *(f"| {what} | {r.median:.2f} | {used} | {r.memory / 1e6:.0f} MB |" for what, r, used in rows),
            "",
            f"fedpeft over bare: {time_ratio:.2f}x the time, {cpu_ratio:.2f}x the CPU. {get_cpu_name()},",
            f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end,",
            f"Python {platform.python_version()}, grpcio",
            f"{grpc.__version__}, mutual TLS over loopback, median of {settings.rounds} rounds (bare: mean).",
        ]
    )


def main() -> None:
    """Measure all transports, print the table, and optionally write the README."""
    settings = tyro.cli(Settings, prog="python -m experiments.transport")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority(folder / "certs", 30)
        authority.ensure()
        authority.server(["localhost", "127.0.0.1"])
        for i in range(max(settings.clients, settings.light)):
            authority.client(f"client-{i:03d}")
        payload = os.urandom(round(settings.megabytes * 1e6))
        ours = run_own(folder, settings.clients, payload, settings.rounds)
        plain = run_bare(folder, settings.clients, payload, settings.rounds)
        light = run_own(folder, settings.light, bytes(100), settings.rounds)
    text = format_table(settings, ours, plain, light)
    print(text)
    if settings.write_readme:
        write_between(README, BEGIN, END, text)


if __name__ == "__main__":
    main()

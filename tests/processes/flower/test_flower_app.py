"""The Flower app: both halves in one process behind Flower's messages, and `flwr run .` as users run it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from flwr.app import Context, RecordDict

from fedpeft.communication.flower_grid import OwnGrid
from fedpeft.flower import client_app, server_app
from fedpeft.simulate import main as simulate
from fedpeft.wiring.config import RunConfig
from tests.fleet import distance

ROOT = Path(__file__).parent.parent.parent.parent
SETTINGS = {"dataset": "tiny", "clients": 3, "cohort": "all", "rounds": 2, "dtype": "fp64", "workers": 1,
            "local_work": "steps(4)", "learning_rate": 0.003}  # fmt: skip


class Nodes(OwnGrid):
    """Three nodes whose client app runs in this process; Flower draws node ids at random, and so are these."""

    IDS = (7001, 11, 523)

    def __init__(self, run_config):
        super().__init__()
        self.run_config, self.replies, self.heard = run_config, [], []

    def context(self, node):
        return Context(17, node, {}, RecordDict(), self.run_config)

    def get_node_ids(self):
        return self.IDS

    def push_messages(self, messages):
        identifiers = []
        for message in messages:
            identifiers.append(self._stamp(message))
            node = message.metadata.dst_node_id
            self.heard.append(node)
            self.replies.append(client_app.app(message, self.context(node)))
        return identifiers

    def pull_messages(self, message_ids):
        replies, self.replies = self.replies, []
        return replies


def run_config(folder):
    values = {name.replace("_", "-"): value for name, value in dataclasses.asdict(RunConfig(**SETTINGS)).items()}
    return {**values, "output": str(folder), "nodes": 3}


@pytest.mark.slow
def test_the_app_ends_with_the_adapter_of_the_simulation(tmp_path, monkeypatch):
    monkeypatch.setattr(client_app, "STATE", tmp_path / "state")
    nodes = Nodes(run_config(tmp_path / "flower"))
    server_app.app(nodes, nodes.context(1))
    assert set(nodes.heard) == set(Nodes.IDS)
    (tmp_path / "run.toml").write_text(RunConfig(**SETTINGS).to_toml())
    assert simulate([str(tmp_path / "run.toml"), "--output", str(tmp_path / "simulated")]) == 0
    [made] = (tmp_path / "flower").iterdir()
    assert distance(made, tmp_path / "simulated") < 1e-6


def environment_of(home):
    """Flower as docs/flower-app.md sets it up, with its files in `home`."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def flwr_run(folder, environment, *words, timeout, **more):
    """Run the command of docs/flower-app.md, and check that its adapter is the simulation's."""
    given = {**SETTINGS, **more, "output": str(folder / "flower")}
    settings = {n: v for n, v in given.items() if n not in ("output", "nodes")}
    text = " ".join(f"{n.replace('_', '-')}={v!r}" for n, v in given.items())
    done = subprocess.run(
        ["flwr", "run", ".", *words, "--stream", "--run-config", text],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "run.toml").write_text(RunConfig(**settings).to_toml())
    assert simulate([str(folder / "run.toml"), "--output", str(folder / "simulated")]) == 0
    assert (folder / "flower").exists(), done.stdout + done.stderr
    [made] = (folder / "flower").iterdir()
    found = distance(made, folder / "simulated")
    print(f"Flower and the simulation differ by {found:.1e}")
    assert found < 1e-6


@pytest.mark.long
def test_flwr_run(tmp_path):
    """Flower's simulation; the SuperLink that it starts for that, and leaves running, is one of this test's own."""
    home = tmp_path / "home"
    link, control = free_ports(2)
    own = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(link), "FLWR_LOCAL_CONTROL_API_PORT": str(control)}
    try:
        flwr_run(tmp_path, {**environment_of(home), **own}, timeout=900)
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if any(word.startswith(str(home)) for word in process.info["cmdline"] or ()):
                process.terminate()


@pytest.mark.long
def test_superlink_and_supernodes(tmp_path):
    """A stock SuperLink and two SuperNodes: processes, loopback, all rounds."""
    environment = environment_of(tmp_path / "home")
    ports = free_ports(3)
    link = f"127.0.0.1:{ports[0]}"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text(
        f'[superlink.local-deployment]\naddress = "{link}"\ninsecure = true\n'
    )
    commands = [
        ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(ports[0])],
        *(["flower-supernode", "--insecure", "--superlink", link, "--port", str(port)] for port in ports[1:]),
    ]
    with contextlib.ExitStack() as running:
        for i, command in enumerate(commands):
            log = running.enter_context(open(tmp_path / f"{i}.log", "w"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)
            running.callback(process.wait)
            running.callback(process.terminate)
            if i == 0:
                answers(ports[0], process)
        flwr_run(tmp_path, environment, "local-deployment", timeout=2400, clients=2, rounds=3, nodes=2)


def free_ports(count):
    with contextlib.ExitStack() as taken:
        servers = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def answers(port, process):
    """Wait until something listens at a port of this machine."""
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)

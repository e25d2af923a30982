"""The Flower app: both halves in one process behind Flower's messages, and `flwr run .` as users run it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedpeft import client_app, server_app
from fedpeft.config import RunConfig
from fedpeft.flower import OwnGrid
from fedpeft.simulate import main as simulate
from tests.fleet import distance

ROOT = Path(__file__).parent.parent
SETTINGS = {"dataset": "tiny", "clients": 3, "cohort": "all", "rounds": 2, "dtype": "fp64", "workers": 1,
            "local_steps": 4, "learning_rate": 0.003}  # fmt: skip


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


@pytest.mark.long
def test_flwr_run(tmp_path):
    """The command of docs/deploy.md with Flower's simulation."""
    given = {**SETTINGS, "cohort": "'all'", "dataset": "'tiny'", "dtype": "'fp64'"}
    words = " ".join(f"{name.replace('_', '-')}={value}" for name, value in given.items())
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    output = f"output='{tmp_path / 'flower'}'"
    done = subprocess.run(
        ["flwr", "run", ".", "--stream", "--run-config", f"{words} {output}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "run.toml").write_text(RunConfig(**SETTINGS).to_toml())
    assert simulate([str(tmp_path / "run.toml"), "--output", str(tmp_path / "simulated")]) == 0
    [made] = (tmp_path / "flower").iterdir()
    assert distance(made, tmp_path / "simulated") < 1e-6

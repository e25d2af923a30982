"""The commands of docs/deploy.md, the examples under clients/, and the Flower app's run config."""

from __future__ import annotations

import configparser
import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tyro

from fedpeft import certs, join, serve, simulate, transcript
from fedpeft.config import RunConfig
from fedpeft.flower.settings import OWN_KEYS, config_of
from fedpeft.machine.cache import cache_directory
from tests.refusals import refuses

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = [block.splitlines() for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)]
[TRIED] = [block for block in BLOCKS if block[0].endswith("> rows.csv")]
COMMANDS = [line for block in BLOCKS for line in block if line.startswith("python ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_walk_through_is_legal(command, tmp_path, monkeypatch):
    """Each is parsed by its own program; that they work together is shown by tests/test_serve.py."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"]
    program, arguments = words[2].removeprefix("fedpeft."), words[3:]
    if "--resume" in arguments:
        run = Path(arguments[arguments.index("--resume") + 1])
        run.mkdir(parents=True)
        (run / "config.toml").write_text(RunConfig().to_toml())
        if program == "serve":
            (run / serve.SERVERS_OPTIONS).write_text("")
    if program in ("certs", "join", "transcript"):
        tyro.cli({"certs": certs, "join": join, "transcript": transcript}[program].Command, args=arguments)
    else:
        {"serve": serve, "simulate": simulate}[program].parse(arguments)


@pytest.mark.slow
def test_the_walk_through_on_one_machine_works(tmp_path):
    """Its lines as they stand, at a free port; `python` is this one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    lines = [line.replace("8470", port).replace("python -m", f"{sys.executable} -m") for line in TRIED]
    for line in lines[:2]:
        subprocess.run(line, shell=True, cwd=tmp_path, check=True, timeout=300)
    environment = {**os.environ, "HOME": str(tmp_path), "FEDPEFT_CACHE": str(cache_directory()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(shlex.split(line), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        for line in lines[2:]
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert (tmp_path / "runs" / "tried" / "adapter" / "adapter_model.safetensors").exists()
    assert all("the federation is finished: the trained model is on the server 127.0.0.1:" in t for t in said[1:])
    assert all("this client's records of it are in " in text for text in said[1:])


def test_the_options_that_the_tables_name_exist():
    known = {f.name for cls in (serve.ServeOptions, RunConfig, join.Command, join.EdgeOptions, certs.Command,
                                serve.Command, transcript.Command) for f in dataclasses.fields(cls)}  # fmt: skip
    others = r"<!-- clients: begin.*?clients: end -->|## Flower.*"  # programs that are not fedpeft's
    for flag in re.findall(r"`[^`\n]*?--([a-z][a-z-]+)", re.sub(others, "", TEXT, flags=re.DOTALL)):
        assert flag.replace("-", "_") in known, flag


def test_the_service_examples_run_legal_commands(tmp_path):
    for name, module in (("fedpeft-join", join), ("fedpeft-serve", serve)):
        unit = configparser.ConfigParser(interpolation=None, strict=False)
        unit.optionxform = str
        unit.read_string((ROOT / "clients" / f"{name}.service").read_text())
        words = shlex.split(unit["Service"]["ExecStart"])
        assert words[1:3] == ["-m", module.__name__]
        tyro.cli(module.Command, args=words[3:])
        assert unit["Service"]["Restart"] == "on-failure"


def test_the_container_runs_a_legal_command():
    """As the file's head says to call it."""
    text = (ROOT / "clients" / "Dockerfile").read_text(encoding="utf-8")
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[1])
    assert entry[:3] == ["python", "-m", join.__name__]
    words = re.search(r"fedpeft-client \\\n#(.*)$", text, re.MULTILINE)[1]
    tyro.cli(join.Command, args=[*entry[3:], *shlex.split(words)])


def test_no_key_gets_into_the_container():
    """The image is made of the wheel; the context holds what that is made of, and certificates in no folder of it."""
    lines = (ROOT / "clients" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [shlex.split(line)[1:-1] for line in lines if line.startswith("COPY")]
    stage = max(k for k, line in enumerate(lines) if line.startswith("FROM"))
    assert [line for line in lines[stage:] if line.startswith("COPY")] == ["COPY --from=wheel /wheel /wheel"]
    sources = {word for words in copied for word in words if not words[0].startswith("--from")}
    ignored = [i for i in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not i.startswith("#")]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    assert {"**/certs", "**/*.key"} <= set(ignored[1 + len(sources) :])


@pytest.mark.parametrize("file", ["certs/ca.key", "certs/revoked.pem", "edge-1/client.key"])
def test_certificates_are_not_committed(file, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    assert subprocess.run(["git", "-C", str(tmp_path), "check-ignore", "-q", file]).returncode == 0


def test_the_flower_run_config_is_the_configuration():
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert config_of(app["config"]) == dataclasses.replace(RunConfig(), dtype="fp32"), "the clients' CPUs are unknown"
    assert set(app["config"]) - {f.name.replace("_", "-") for f in dataclasses.fields(RunConfig)} == set(OWN_KEYS)
    with refuses("FP1225", "did you mean 'rounds"):
        config_of({**app["config"], "round": 3})
    with refuses("FP1178"):
        config_of({**app["config"], "strategy": "flora"})

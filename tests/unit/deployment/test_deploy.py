"""The commands of docs/deploy*.md, the examples under clients/, and the Flower app's run config."""

from __future__ import annotations

import configparser
import dataclasses
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import tyro

from fedpeft import join, serve, simulate
from fedpeft.commands import certs, transcript
from fedpeft.flower.settings import OWN_KEYS, read_config
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses
from tests.unit.test_readme import join_lines

ROOT = Path(__file__).parent.parent.parent.parent
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("deploy*.md")))
BLOCKS = [block.splitlines() for block in re.findall(r"```bash\n(.*?)```", join_lines(TEXT), re.DOTALL)]
COMMANDS = [line for block in BLOCKS for line in block if line.startswith("fedpeft ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_walk_through_is_legal(command, tmp_path, monkeypatch):
    """Each is parsed by its own program; that they work together is shown by tests/processes/test_serve.py."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    program, arguments = words[1], words[2:]
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


def test_the_options_that_the_tables_name_exist():
    known = {f.name for cls in (serve.ServeOptions, RunConfig, join.Command, join.JoinOptions, join.EdgeOptions,
                                certs.Command, serve.Command, transcript.Command)
             for f in dataclasses.fields(cls)}  # fmt: skip
    others = r"<!-- clients: begin.*?clients: end -->"  # a program that is not fedpeft's
    for flag in re.findall(r"`[^`\n]*?--([a-z][a-z-]+)", re.sub(others, "", TEXT, flags=re.DOTALL)):
        assert flag.replace("-", "_") in known, flag


def test_the_service_examples_run_legal_commands(tmp_path):
    for name, module in (("fedpeft-join", join), ("fedpeft-serve", serve)):
        unit = configparser.ConfigParser(interpolation=None, strict=False)
        unit.optionxform = str
        unit.read_string((ROOT / "clients" / f"{name}.service").read_text())
        words = shlex.split(unit["Service"]["ExecStart"])
        assert words[1] == module.__name__.removeprefix("fedpeft.")
        tyro.cli(module.Command, args=words[2:])
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


def test_the_flower_run_config_is_the_configuration():
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert read_config(app["config"]) == dataclasses.replace(RunConfig(), dtype="fp32"), "the clients' CPUs are unknown"
    assert set(app["config"]) - {f.name.replace("_", "-") for f in dataclasses.fields(RunConfig)} == set(OWN_KEYS)
    with refuses("FP1225", "did you mean 'rounds"):
        read_config({**app["config"], "round": 3})
    with refuses("FP1178"):
        read_config({**app["config"], "strategy": "flora"})

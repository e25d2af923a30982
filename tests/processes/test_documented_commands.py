"""Every command of README.md and docs/ works as it stands, in the environment that the text before it has made.

Each document is read from top to bottom in a folder with the files of the repository, and its commands run one after
another. Nothing is installed: packages of an extra can't be imported before the text has asked for that extra. What is
run otherwise than it is written is listed in `OVERRIDES`, `NOT_RUN` and `COMPANIONS`, each with its reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fedpeft.machine.cache import get_cache_directory
from tests.hiding import hide
from tests.unit.test_documented_commands import DOCUMENTS, EXTRAS, NOT_RUN, OVERRIDES, ROOT, blocks

COMPANIONS = {
    f"docs/{page}.md": ("edge-1", "edge-2", "edge-3")
    for page in ("deploy", "deploy-tasks", "deploy-privacy", "deploy-sums")
}
"""Documents that write one client's command for all: who joins by the same words with its own folder."""

OWN_EXAMPLES = {
    "rows.csv": ("good", "bad"),
    "site-1.csv": ("match", "mismatch"),
    "site-2.csv": ("match", "mismatch"),
}
"""The files of a client's own examples that documents name, with their labels."""

MODULES = {
    "grpcio-health-checking": "grpc_health", "mlflow-skinny": "mlflow", "prometheus-client": "prometheus_client",
    "scikit-learn": "sklearn",
}  # fmt: skip


def packages(extra: str) -> set[str]:
    """Return the import names of the packages that an extra installs."""
    found: set[str] = set()
    for requirement in EXTRAS[extra]:
        name, extras = re.match(r"([\w-]+)(?:\[(.*)\])?", requirement).groups()
        found |= set().union(*map(packages, extras.split(","))) if extras else {MODULES.get(name, name)}
    return found


OPTIONAL = set().union(*(packages(extra) for extra in EXTRAS if extra not in ("dev", "all")))
BEGUN = {"simulate", "server"}
"""The extras that the first line of README.md and docs/index.md installs, before all other pages."""


def as_run(command: str) -> str:
    for pattern, other, _ in OVERRIDES:
        command = re.sub(pattern, other, command)
    return command


@dataclass
class Reader:
    """Does what a document says, line by line.

    Attributes:
        folder: holds the files of the repository.
        environment: of commands; `export` adds to it.
        extras: that the text has asked for.
        server: the one that runs, of a line before.
        servers: that were started.
    """

    document: str
    folder: Path
    environment: dict[str, str]
    extras: set[str] = field(default_factory=BEGUN.copy)
    server: subprocess.Popen | None = None
    servers: int = 0

    def block(self, lines: list[str]) -> None:
        """All lines; what clients have to themselves is started together."""
        before = set(self.extras)
        for line in lines:
            self.line(line, [other for other in lines if "fedpeft join" in other])
        if ".[dev]" in "".join(lines):
            self.extras = before  # for the tests, and nobody else has to have it

    def line(self, written: str, joins: list[str]) -> None:
        command = as_run(written)
        if written in NOT_RUN:
            return
        if written.startswith("pip install"):
            self.install(written)
        elif written.startswith("export "):
            self.environment |= dict(word.split("=", 1) for word in shlex.split(written)[1:])
        elif "fedpeft serve" in written:
            self.stop_server()
            self.server = self.start(command)
            self.servers += 1
        elif "fedpeft join" in written:
            if written == joins[0]:
                self.join(joins)
        else:
            assert self.end(self.start(command), command) == 0

    def install(self, written: str) -> None:
        """Only note it: that extras exist, and that the package can be installed, is shown by .ci/run."""
        asked = re.search(r"\.\[(.*)\]", written)
        for extra in asked.group(1).split(",") if asked else ():
            assert extra in EXTRAS, written
            self.extras.add(extra)

    def join(self, joins: list[str]) -> None:
        """All clients, until the federation is finished; their states are kept as `a`, `b` and so on."""
        names = COMPANIONS.get(self.document, ()) if len(joins) == 1 else ()
        commands = [joins[0].replace("edge-1", name) for name in names] or joins
        for file, (good, bad) in OWN_EXAMPLES.items():
            opinions = (f"works well,{good}", f"broke at once,{bad}")
            rows = [f"the thing {i} {opinion}" for i in range(140) for opinion in opinions]
            (self.folder / file).write_text("\n".join(["text,label", *rows]) + "\n")
        started = [(self.start(as_run(command), self.machine_of(command)), command) for command in commands]
        for process, command in started:
            assert self.end(process, command) == 0
        assert self.server is not None
        assert self.end(self.server, "the server") == 0
        self.server = None
        for transcript in Path(self.environment["HOME"]).rglob("transcript.jsonl"):
            if not (copy := self.folder / "ab"["edge-2" in str(transcript.parent)]).exists():
                shutil.copytree(transcript.parent, copy)

    def machine_of(self, command: str) -> dict[str, str]:
        """Return the environment of a client's own machine: a home folder with its state and ledgers."""
        home = Path(self.environment["HOME"]) / re.search(r"edge-\d", command).group()
        home.mkdir(exist_ok=True)
        return {"HOME": str(home)}

    def stop_server(self) -> None:
        """As the text says before it resumes one."""
        if self.server is not None:
            log = self.folder / "said.log"
            while self.server.poll() is None and len(re.findall(r"^listen ", log.read_text(), re.M)) < self.servers:
                time.sleep(0.2)
            self.server.send_signal(signal.SIGTERM)
            assert self.end(self.server, "the server") == 0

    def start(self, command: str, more: Mapping[str, str] = {}) -> subprocess.Popen:
        known = set().union(*(packages(extra) for extra in self.extras))
        hidden = hide(self.folder.parent / "hiding", OPTIONAL - known, str(self.folder))
        environment = {**self.environment, **more, **hidden}
        command = command.replace("8470", environment["PORT"])
        output = (self.folder / "said.log").open("a")
        output.write(f"\n$ {command}\n")
        output.flush()
        return subprocess.Popen(
            ["bash", "-c", f"exec {command}" if command.startswith(("python ", "fedpeft ")) else command],
            cwd=self.folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def end(self, process: subprocess.Popen, command: str) -> int:
        try:
            code = process.wait(timeout=1800)
        finally:
            process.kill()
        if code:
            said = (self.folder / "said.log").read_text()
            pytest.fail(f"{command}\n{said[-4000:]}")
        return code


@pytest.fixture
def reader(request, tmp_path):
    document = request.param
    folder, home = tmp_path / "fedpeft", tmp_path / "home"
    unwanted = shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "runs", "build", "dist", ".venv")
    shutil.copytree(ROOT, folder, ignore=unwanted)
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "FLWR_HOME": str(home / "flwr"),
        "FEDPEFT_CACHE": str(get_cache_directory()),
        "PORT": port,
    }
    made = Reader(document.relative_to(ROOT).as_posix(), folder, environment)
    yield made
    if made.server is not None:
        made.server.kill()
    for process in psutil.process_iter():  # Flower leaves a SuperLink behind
        try:
            mine = process.environ().get("FLWR_HOME") == str(home / "flwr")
        except psutil.Error:
            continue
        if mine:
            process.kill()


def files_made_by_python(document: Path) -> dict[str, str]:
    """Blocks of Python whose first line is the file's name."""
    found = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize("reader", DOCUMENTS, indirect=True, ids=lambda path: path.name)
def test_all_commands_of_a_document_work_in_their_order(reader):
    document = ROOT / reader.document
    for name, text in files_made_by_python(document).items():
        (reader.folder / name).write_text(text)
    checkout = reader.folder
    for lines in blocks(document):
        if lines[0].endswith("> rows.csv"):  # "On one machine, to try it": a place of its own
            reader.folder = checkout.parent / "tried"
            reader.folder.mkdir()
        reader.block(lines)
        reader.folder = checkout

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
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fedpeft.machine.cache import cache_directory

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SHORT = '--rounds 1 --tokens 32 --workers 1 --local-work "steps(2)"'

OVERRIDES = [
    (r"^(python -m fedpeft\.(?:simulate|serve) (?!--help|--resume).*)$", rf"\1 {SHORT}",
     "README, docs/deploy.md: each takes minutes, and these flags make any of them short"),
    (r"^(.*tasks\(.*) --rounds 1 ", r"\1 --rounds 8 ", "docs/continual.md: each task has rounds of its own"),
    (r"^(python -m fedpeft\.simulate (?=.*shakespeare).*)$", r"\1 --model tiny_lm",
     "README: a step of the default language model takes seconds"),
    (r'(distributed_dp(?!.*unit=clients).*) --local-work "steps\(2\)"', r"\1",
     "docs/privacy.md, docs/deploy.md: a round is one step there"),
    (r"(conversations.*) --tokens 32", r"\1 --tokens 64", "README: their answers begin behind the 32nd token"),
    (r"(--task instruction.*) --tokens 32", r"\1", "docs/deploy.md: the same"),
    (r"office\(rows=200\)(.*) --tokens 32", r"office(rows=2, test_rows=1)\1 --tokens 96",
     "README: its rows and the default language model take minutes, and answers begin behind the 32nd token"),
    (r"rows=6000, test_rows=2000", "rows=1000, test_rows=100", "README: the default image model takes minutes"),
    (r"^(python -m fedpeft\.simulate (?!.*captions).*scenes.*)$", r"\1 --model 'towers(image=tiny_vision, text=tiny)'",
     "docs/pairs.md: the default towers take minutes"),
    (r"^(python -m fedpeft\.simulate .*captions.*)$", r"\1 --model 'towers(image=tiny_vision, text=tiny_lm)'",
     "docs/pairs.md: the default towers take minutes"),
    (r"^(python -m fedpeft\.predict runs/captions .*)$", r"\1 --new-tokens 8", "docs/pairs.md: of so short a model"),
    (rf"^(python -m fedpeft\.simulate (?!--clients 100 {re.escape(SHORT)}$)"
     r"(?!.*(?:--model|fashion_mnist|conversations|office|tiny_seq2seq)).*)$", r"\1 --model tiny",
     "README: the default text model takes minutes; the first command and those that name it have it"),
    (r"(distributed_dp.*) --local-work \"steps\(2\)\"", r"\1", "README, docs/privacy.md: it takes one step a round"),
    (r"^python -m pytest -n 2$", "python -m pytest -n 2 tests/test_parts.py",
     "docs/install.md: the suite takes up to 20 minutes"),
    (r"^(FEDPEFT_ATTACK_SHARE=\S+ )?(python -m pytest tests/attacks -m long).*$", r"\2 --collect-only -q",
     "docs/reliability.md: all of it, for hours"),
    (r"fl\.example\.org", "localhost", "no such machine: README and docs/deploy.md have it stand for the server"),
    (r'^(flwr run .*--run-config ")(.*)"$', r"\1\2 dataset='tiny' tokens=32 local-work='steps(2)' dtype='fp32'" + '"',
     "docs/deploy.md: half a minute a round where nodes start a process for every message"),
]  # fmt: skip
"""Regular expression, what the command is instead, and why."""

NOT_RUN = {
    'python -m fedpeft.simulate --clients 100 --grid "ray(address=auto)"': "needs a running Ray cluster",
    "python -m fedpeft.serve --resume runs/first --readmit edge-2": "needs a client that was dropped, and whose cause "
    "was mended: tests/deployment/test_hostile_clients.py",
}
"""Commands that need what no text makes."""

COMPANIONS = {
    "docs/deploy.md": ("edge-1", "edge-2", "edge-3"),
}
"""Documents that write one client's command for all: who joins by the same words with its own folder."""

HIDE = '''
import os, sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    """Finds nothing of what the text has not asked for."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["HIDDEN_PACKAGES"].split(","):
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
'''
MODULES = {"prometheus-client": "prometheus_client", "mlflow-skinny": "mlflow"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def packages(extra: str) -> set[str]:
    """What an extra brings, by the names of imports."""
    found: set[str] = set()
    for requirement in EXTRAS[extra]:
        name, extras = re.match(r"([\w-]+)(?:\[(.*)\])?", requirement).groups()
        found |= set().union(*map(packages, extras.split(","))) if extras else {MODULES.get(name, name)}
    return found


OPTIONAL = set().union(*(packages(extra) for extra in EXTRAS if extra not in ("dev", "all")))


def blocks(document: Path) -> list[list[str]]:
    """The lines of each block of commands, of Flower's too, which are not fedpeft's own; files are left out."""
    found = re.findall(r"^```(bash|text)\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [(kind, [line for line in block.splitlines() if line]) for kind, block in found]
    flower = ("export FLWR", "flwr run . --stream")
    return [block for kind, block in lines if kind == "bash" or block[0].startswith(flower)]


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
    extras: set[str] = field(default_factory=set)
    server: subprocess.Popen | None = None
    servers: int = 0

    def block(self, lines: list[str]) -> None:
        """All lines; what clients have to themselves is started together."""
        before = set(self.extras)
        for line in lines:
            self.line(line, [other for other in lines if "fedpeft.join" in other])
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
        elif "fedpeft.serve" in written:
            self.stop_server()
            self.server = self.start(command)
            self.servers += 1
        elif "fedpeft.join" in written:
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
        shutil.copy(ROOT / "examples" / "reviews.csv", self.folder / "rows.csv")  # "rows of its own"
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
        """A client has a machine of its own: here a home folder, with its state and its ledgers."""
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
        environment = {**self.environment, **more, "HIDDEN_PACKAGES": ",".join(sorted(OPTIONAL - known))}
        command = command.replace("8470", environment["PORT"])
        output = (self.folder / "said.log").open("a")
        output.write(f"\n$ {command}\n")
        output.flush()
        return subprocess.Popen(
            ["bash", "-c", f"exec {command}" if command.startswith("python ") else command],
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
    folder, hiding, home = tmp_path / "fedpeft", tmp_path / "hiding", tmp_path / "home"
    unwanted = shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "runs", "build", "dist", ".venv")
    shutil.copytree(ROOT, folder, ignore=unwanted)
    hiding.mkdir()
    home.mkdir()
    (hiding / "sitecustomize.py").write_text(HIDE)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{hiding}:{folder}",
        "HOME": str(home),
        "FLWR_HOME": str(home / "flwr"),
        "FEDPEFT_CACHE": str(cache_directory()),
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


def test_what_is_not_run_as_written_is_written_somewhere():
    written = [line for document in DOCUMENTS for block in blocks(document) for line in block]
    assert set(NOT_RUN) <= set(written)
    for pattern, other, why in OVERRIDES:
        assert any(re.search(pattern, line) for line in written), why
        written = [re.sub(pattern, other, line) for line in written]


def test_servers_say_where_they_listen():
    """Without, they listen to this machine only, and the clients of the next line are on others."""
    written = [line for document in DOCUMENTS for block in blocks(document) for line in block]
    servers = [line for line in written if "fedpeft.serve" in line and "--resume" not in line]
    assert servers
    assert [line for line in servers if "--listen" not in line] == []


def test_files_that_commands_name_are_in_the_repository():
    for document in DOCUMENTS:
        for path in re.findall(
            r"(?:examples|experiments)/[\w/]+\.\w+", "\n".join("\n".join(block) for block in blocks(document))
        ):
            assert (ROOT / path).is_file(), path


def test_the_example_files_are_what_their_script_makes(tmp_path):
    made: dict[str, object] = {"__name__": "make", "__file__": str(ROOT / "examples" / "make.py")}
    exec((ROOT / "examples" / "make.py").read_text(), made)
    made["main"](tmp_path)
    for name in ("reviews.csv", "shops.csv", "rooms.csv", "conversations.jsonl"):
        assert (tmp_path / name).read_bytes() == (ROOT / "examples" / name).read_bytes()


def test_the_table_of_extras_names_each():
    table = (ROOT / "docs" / "install.md").read_text().partition("| extra | for |")[2].partition("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == set(EXTRAS)


def test_clients_on_one_machine_do_not_take_all_its_cores_each() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for block in blocks(document):
            joins = [line for line in block if "fedpeft.join --server 127.0.0.1" in line]
            assert len(joins) < 2 or all("--threads 1" in line for line in joins), document

"""Run the tests that execute a mutated line, in a fork: `python -P experiments/mutation/server.py MAP.json`.

A process that starts pytest anew spends ten seconds on imports. This one imports the libraries once, but nothing of
fedpeft. For each request of `experiments.mutation.ask` it compares the files of the product with what they were at the
start, and forks. The fork imports fedpeft with the mutation in it and runs tests until one fails.

Which tests: those of the fast tier that execute the statement with the mutation (`experiments.mutation.map`). If it
stands outside of functions, those that execute any line of its file, and all tests in the folder of its package. The
tests in this folder come first, the cheapest first, up to `OWN` seconds. If they pass, the others follow, up to
`OTHERS` seconds.

A fork that takes `SLACK` seconds of processor time more than its tests took in step 1 is stopped: the mutant counts as
killed.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

PRODUCT = ("fedpeft", "strategies", "clients")
FOLDERS = {"strategies": "aggregation"}
"""The folder below tests/unit of a package that has another name."""
OWN, OTHERS, SLACK = 100.0, 30.0, 20.0
"""Seconds."""
WAIT = 240.0
"""Seconds until a waiting fork is stopped."""
LIBRARIES = """
import sys
import fedpeft.flower.server_app, fedpeft.privacy.engine, fedpeft.simulate, fedpeft.simulation.simulation
import hypothesis.strategies, opacus.accountants, opacus.accountants.analysis.prv, scipy.stats
print(*(name for name in sys.modules if name.split(".")[0] not in ("fedpeft", "__main__")), sep="\\n")
"""


class Chosen:
    """A plugin of pytest that runs the given tests only, in the given order."""

    def __init__(self, nodeids: list[str]):
        """Hold the ids of the tests in order."""
        self._order = {nodeid: place for place, nodeid in enumerate(nodeids)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the given tests and drop the others."""
        items[:] = sorted((i for i in items if i.nodeid in self._order), key=lambda i: self._order[i.nodeid])


class Map:
    """The tests that execute a line, and how long each takes."""

    def __init__(self, file: Path):
        """Read the map from `file`."""
        content = json.loads(file.read_text(encoding="utf-8"))
        self._tests: list[tuple[str, float]] = content["tests"]
        self._lines: dict[str, dict[str, list[int]]] = content["lines"]

    def find_tests(self, path: str, lines: range, folder: str) -> list[tuple[str, float]]:
        """Return the tests that execute one of the lines, the cheapest first.

        Without lines: those that execute any line of the file, and all tests in the folder.
        """
        executed = self._lines.get(path, {})
        chosen = map(str, lines) if lines else executed
        found = {test for line in chosen for test in executed.get(line, ())}
        if not lines:
            found |= {number for number, (nodeid, _) in enumerate(self._tests) if nodeid.startswith(folder)}
        return sorted((self._tests[test] for test in found), key=lambda test: test[1])


def take_cheapest(tests: list[tuple[str, float]], seconds: float) -> list[tuple[str, float]]:
    """Return the first tests that take so many seconds together."""
    total = 0.0
    taken: list[tuple[str, float]] = []
    for nodeid, cost in tests:
        total += cost
        if taken and total > seconds:
            break
        taken.append((nodeid, cost))
    return taken


def find_statement(source: str, line: int) -> range:
    """Return the lines of the innermost statement that holds a line; of a compound one, those of its head.

    A statement outside of functions has no lines: whichever test imports the file first executes it.
    """
    best = range(0)
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in (inner for statement in function.body for inner in ast.walk(statement)):
                body = getattr(node, "body", None)
                if isinstance(node, ast.stmt):
                    end = body[0].lineno if isinstance(body, list) else (node.end_lineno or node.lineno) + 1
                    if node.lineno <= line < max(end, node.lineno + 1):
                        best = range(node.lineno, max(end, node.lineno + 1))
    return best


def read_product() -> dict[str, str]:
    """Return the text of each file of the product."""
    return {str(file): file.read_text(encoding="utf-8") for folder in PRODUCT for file in Path(folder).rglob("*.py")}


def find_change(before: dict[str, str]) -> tuple[str, range] | None:
    """Return the file that differs from what it was, and the lines of the statement that differs."""
    for path, text in before.items():
        now = Path(path).read_text(encoding="utf-8")
        if now != text:
            pairs = zip(text.splitlines(), now.splitlines(), strict=False)
            line = next((n for n, (a, b) in enumerate(pairs, 1) if a != b), 1)
            return path, find_statement(text, line)
    return None


def run_forked(tests: list[tuple[str, float]]) -> tuple[int, str]:
    """Run tests in a fork until one fails, and return pytest's exit code and the end of what it printed."""
    nodeids = [nodeid for nodeid, _ in tests]
    files = list(dict.fromkeys(nodeid.split("::")[0] for nodeid in nodeids))
    limit = int(sum(cost for _, cost in tests) + SLACK)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        process = os.fork()
        if process == 0:
            os.setpgid(0, 0)
            with output.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", f"--basetemp={folder}/tests"]
            code = pytest.main([*options, *files], plugins=[Chosen(nodeids)])
            sys.stdout.flush()
            os._exit(int(code))
        code = wait_for(process)
        text = output.read_text(encoding="utf-8", errors="replace")[-3000:]
        shutil.rmtree(Path(folder) / "tests", ignore_errors=True)
    return code, text


def wait_for(process: int) -> int:
    """Return the exit code of a fork, 99 if a signal ended it, and end what it has started."""
    until = time.monotonic() + WAIT
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return 99
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    return os.WEXITSTATUS(ended[1]) if os.WIFEXITED(ended[1]) else 99


def judge(change: tuple[str, range] | None, tests: Map) -> tuple[int, str]:
    """Run the tests of a change: first those of its own folder, then the others."""
    if change is None:
        return 0, "no file has changed"
    path, lines = change
    parts = Path(path).parts
    folder = f"tests/unit/{FOLDERS.get(parts[0], parts[1])}/"
    covering = tests.find_tests(path, lines, folder)
    own = take_cheapest([test for test in covering if test[0].startswith(folder)], OWN)
    others = take_cheapest([test for test in covering if not test[0].startswith(folder)], OTHERS)
    text = f"{path}: no test executes it"
    for chosen in (own, others):
        if chosen:
            code, output = run_forked(chosen)
            text = f"{path}:{lines.start}: {len(own)} and {len(others)} of {len(covering)} tests\n{output}"
            if code not in (0, 5):
                return code, text
    return 0, text


def import_libraries() -> None:
    """Import what fedpeft imports, but nothing of fedpeft."""
    names = subprocess.run([sys.executable, "-c", LIBRARIES], check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        try:
            importlib.import_module(name)
        except Exception:  # a module that only its own package can import
            continue
    assert not any(name.split(".")[0] == "fedpeft" for name in sys.modules)


def serve(tests: Map) -> None:
    """Answer requests until a signal ends the process."""
    before = read_product()
    address = os.environ["MUTATION_SOCKET"]
    Path(address).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        while True:
            channel, _ = listening.accept()
            with channel:
                code, text = judge(find_change(before), tests)
                channel.sendall(f"{code}\n{text}".encode())


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    import_libraries()
    gc.collect()
    gc.freeze()
    serve(Map(Path(sys.argv[1])))

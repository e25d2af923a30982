"""Attacks on the isolation of code that a model wrote: none gets out, and none passes tests that it should fail."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedpeft.machine import sandbox, sandbox_launcher
from fedpeft.machine.sandbox import IsolatedProgram, Limits
from fedpeft.models.answers.code_tests import passes_tests
from tests.refusals import refuses
from tests.unit.evaluation.test_code import isolated

pytestmark = isolated

LIMITS = Limits(seconds=4, memory_mb=128, file_mb=2)


def run(program: str, limits: Limits = LIMITS) -> tuple[str, str]:
    """Return how a program ended, and what it wrote to its channel."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as answers, IsolatedProgram({"main.py": program}, [writing], limits) as started:
        os.close(writing)
        ended = started.wait()
        return ended, answers.read(1000).decode()


def attempt(attack: str) -> str:
    """Return "done" if a statement succeeds in isolation, or else its type of error."""
    lines = "\n".join(f"    {line}" for line in attack.split("\n"))
    return run(
        f"import os, sys\ntry:\n{lines}\n    os.write(3, b'done')\n"
        "except BaseException as error:\n    os.write(3, type(error).__name__.encode())"
    )[1]


REFUSED = {
    *("PermissionError", "FileNotFoundError", "OSError", "RuntimeError", "MemoryError", "BlockingIOError"),
    *("ValueError", "AssertionError", "ProcessLookupError", "ZeroDivisionError"),
}
"""Errors that are an answer of the kernel, and no mistake in an attack."""


@pytest.mark.parametrize(
    "attack",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('1.1.1.1', 53), 1)",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import socket; socket.socketpair()",
        "os.fork()",
        "import _thread; _thread.start_new_thread(print, ())",
        "import subprocess; subprocess.run(['/bin/true'])",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "os.listdir(os.path.expanduser('~root'))",
        "open('/usr/lib/planted', 'w')",
        "open(os.path.join(sys.prefix, 'planted'), 'w')",
        "os.remove(os.__file__)",
        "os.chmod(os.__file__, 0o777)",
        "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))",
        "bytearray(200_000_000)",
        "open('big', 'wb').write(bytes(3_000_000))",
        "for i in range(9): open(str(i), 'wb').write(bytes(500_000))",
        "for i in range(99): os.dup(3)",
        "os.kill(os.getppid(), 0) if os.getppid() else 1 / 0",
        "for other in range(2, 5000): os.kill(other, 9)",
        "os.setuid(0)",
        "os.nice(-5)",
        "os.memfd_create('x')",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
        "import ctypes; libc = ctypes.CDLL(None); assert libc.unshare(0x10000000) == 0",
        "import ctypes; libc = ctypes.CDLL(None); assert libc.mount(b'x', b'/tmp', b'tmpfs', 0, b'') == 0",
        "import ctypes; libc = ctypes.CDLL(None); assert libc.shmget(0, 1 << 20, 0o1666) >= 0",
        "import ctypes; libc = ctypes.CDLL(None); assert libc.ptrace(0, 0, 0, 0) == 0",
        "import ctypes; libc = ctypes.CDLL(None); assert libc.prctl(1, 0, 0, 0, 0) == 0",
    ],
)
def test_nothing_gets_out(attack):
    assert attempt(attack) in REFUSED


def test_a_secret_is_neither_in_files_nor_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    (tmp_path / "secret.txt").write_text("hunter2")
    ended, said = run(
        f"import os\nhere = [os.path.exists(p) for p in ('{tmp_path}', '{Path(__file__)}', '/home', '/proc', '/dev')]\n"
        "os.environ.pop('LC_CTYPE', None)\n"  # Python itself sets it
        "os.environ.pop('PYTHONHASHSEED')\n"
        "os.write(3, repr((any(here), dict(os.environ), os.listdir('/tmp'), os.getpid())).encode())"
    )
    assert (ended, said) == ("exit 0", "(False, {}, [], 1)")


def test_hashes_and_paths_are_the_same_in_each_run():
    program = (
        "import os, sys\nos.write(3, repr((hash('a'), sys.path, sys.flags.no_user_site, sys.flags.no_site)).encode())"
    )
    first, second = run(program), run(program)
    assert first == second
    assert first[1].endswith(", 1, 1)")
    assert not {"", "/", "/tmp"} & set(ast.literal_eval(first[1])[1])


def test_it_writes_in_its_own_folder_only():
    assert attempt("open('mine', 'w').write('x')") == "done"
    before = set(Path("/tmp").iterdir())
    run("open('/tmp/fedpeft-planted', 'w').write('x')")
    assert not Path("/tmp/fedpeft-planted").exists()
    assert not [p for p in set(Path("/tmp").iterdir()) - before if p.name.startswith("fedpeft-sandbox-")]


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Show programs a folder with a name that the list of mounts encodes."""
    folder = tmp_path / "pé \\ x"
    folder.mkdir()
    paths = [*sandbox.list_shown_paths(), str(folder)]
    monkeypatch.setattr(sandbox, "list_shown_paths", lambda: paths)
    return folder


def test_a_shown_folder_is_read_only_whatever_its_name(shown):
    (shown / "here").touch()
    assert attempt(f"assert os.listdir({str(shown)!r}) == ['here']") == "done"
    assert attempt(f"open({str(shown / 'planted')!r}, 'w')") == "OSError"
    assert not (shown / "planted").exists()


def test_the_temporary_folder_may_be_a_link(tmp_path, shown, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path / "link"))
    assert attempt(f"open({str(shown / 'planted')!r}, 'w')") == "OSError"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("mount(None, place,", "'pé' in place or mount(None, place,", "writing in"),
        ("return [os.fsdecode", "return [] and [os.fsdecode", "not among the mounts"),
    ],
)
def test_a_writable_folder_is_refused(tmp_path, shown, monkeypatch, before, after, reason):
    launcher = tmp_path / "launcher.py"
    text = Path(sandbox_launcher.__file__).read_text()
    assert before in text
    launcher.write_text(text.replace(before, after))
    monkeypatch.setattr(sandbox_launcher, "__file__", str(launcher))
    sandbox.check_isolation.cache_clear()
    try:
        with refuses("FP1681", reason):
            sandbox.check_isolation()
    finally:
        sandbox.check_isolation.cache_clear()


@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "while True: print('x' * 10000)",
        "import os, signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except OSError: pass\nwhile True: pass",
        "import os\nwhile True: os.write(3, b'x' * 10000)",
    ],
)
def test_it_ends_in_time(program):
    started = time.monotonic()
    ended, _ = run(program, Limits(seconds=1))
    assert ended == "time"
    assert time.monotonic() - started < 8


def test_no_process_is_left(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"):
        program = IsolatedProgram({"main.py": "import time; time.sleep(60)"}, [writing], Limits(60))
        os.close(writing)
        launcher = psutil.Process(program._process.pid)
        deadline = time.monotonic() + 5
        while not (children := launcher.children(recursive=True)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert children
        with program:
            pass  # as after an error or Ctrl-C
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive


FAKES = {
    "ends well": "import os\ndef f(x):\n    os._exit(0)",
    "ends at once": "import sys\nsys.exit(0)",
    "says so on all channels": "import os\nfor n in range(1, 64):\n    try: os.write(n, b'passed')\n"
    "    except OSError: pass\ndef f(x): return None",
    "replaces builtins": "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.exec = print\n"
    "def f(x): return None",
    "is equal to all": "class Equal(int):\n    def __eq__(self, other): return True\ndef f(x): return Equal(0)",
    "is an object equal to all": "class Equal:\n    def __eq__(self, other): return True\ndef f(x): return Equal()",
    "looks at its caller": "import sys\ndef f(x):\n    frame = sys._getframe(1)\n"
    "    frame.f_locals['reply'] = {'value': 3}\n    return None",
    "reads the tests": "def f(x):\n    return eval(open('/tests.py').read().split('==')[1])",
    "ends the iteration": "def f(x):\n    raise StopIteration",
    "raises what passes through": "def f(x):\n    raise SystemExit(0)",
    "answers with rubbish": 'import os\ndef f(x):\n    os.write(4, b\'{"value": {"dict": 1}}\\n\')',
    "answers without end": "import os\ndef f(x):\n    while True: os.write(4, b'x' * 60000)",
    "closes the channels": "import os\nos.closerange(0, 64)\ndef f(x): return 3",
    "is nested deeply": "def f(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
}


@pytest.mark.parametrize("code", FAKES.values(), ids=FAKES.keys())
def test_no_code_can_report_success_itself(code):
    tests = "assert all(map(lambda x: f(x) == 3, [1, 2]))"
    assert not passes_tests("", code, tests, Limits(seconds=3))


def test_a_machine_that_cannot_isolate_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox.IsolatedProgram, "wait", lambda self: "setup unshare: Operation not permitted")
    sandbox.check_isolation.cache_clear()
    try:
        with refuses("FP1681", "unshare: Operation not permitted", "--run-code"):
            sandbox.check_isolation()
    finally:
        sandbox.check_isolation.cache_clear()


def test_a_python_beside_the_user_s_files_is_refused(monkeypatch):
    sandbox.check_isolation.cache_clear()
    monkeypatch.setenv("HOME", f"{sys.base_prefix}/mine")
    with refuses("FP1681", os.path.realpath(sys.base_prefix)):
        sandbox.check_isolation()
    sandbox.check_isolation.cache_clear()


def test_a_program_ends_with_its_launcher_even_before_it_begins(tmp_path):
    """A launcher is killed at any time; a child that outlived it would run without a limit of time."""
    script = tmp_path / "slow.py"
    script.write_text(
        f"import sys, time\nsys.path.insert(0, {str(Path(sandbox_launcher.__file__).parent)!r})\n"
        "import sandbox_launcher\nsandbox_launcher.enter_file_system = lambda *_: time.sleep(60)\n"
        "sandbox_launcher.main()\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE) as launcher:
        orders = {"seconds": 60, "root": "", "shown": [], "files": {}, "file_bytes": 0, "channels": []}
        launcher.stdin.write(json.dumps(orders).encode())
        launcher.stdin.close()
        children = []
        while not children and launcher.poll() is None:
            children = psutil.Process(launcher.pid).children()
        time.sleep(0.5)
        launcher.kill()
    _, alive = psutil.wait_procs(children, timeout=5)
    for child in alive:
        child.kill()
    assert children
    assert not alive

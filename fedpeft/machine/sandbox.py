"""Programs in isolation: Python code that nobody has read, without network, files, other processes, or much memory.

`fedpeft.machine.sandbox_launcher` describes what a program meets. Its output goes nowhere: it communicates by the pipes
that it is given. How it ended comes from the kernel.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedpeft.errors import ConfigError
from fedpeft.machine import sandbox_launcher

MEGABYTE = 1_000_000

SPARE = 10.0
"""Seconds that the launcher may take beyond a program's time."""

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
"""Paths of shared libraries."""


@dataclass(frozen=True)
class Limits:
    """Limits of a program.

    Attributes:
        seconds: time and, rounded up, processor time.
        memory_mb: address space of the process, in MB.
        file_mb: size of all files together, in MB.
    """

    seconds: float = 10.0
    memory_mb: int = 512
    file_mb: int = 8


class IsolatedProgram:
    """A running program; leaving its context ends it."""

    def __init__(self, files: Mapping[str, str], channels: Sequence[int], limits: Limits) -> None:
        """Start a program.

        Args:
            files: texts by name, in its root folder; `main.py` is run.
            channels: file descriptors that it has as 3, 4, ...; the caller still has to close its own copies.
            limits: limits of the program.
        """
        self._limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="fedpeft-sandbox-")
        orders: dict[str, Any] = {
            "root": os.path.realpath(self._folder.name),
            "shown": list_shown_paths(),
            "files": dict(files),
            "channels": list(channels),
            "python": os.path.realpath(_get_interpreter()),
            "seconds": limits.seconds,
            "cpu_seconds": int(limits.seconds) + 1,
            "memory_bytes": limits.memory_mb * MEGABYTE,
            "file_bytes": limits.file_mb * MEGABYTE,
        }
        self._process = subprocess.Popen(
            [_get_interpreter(), "-I", "-S", "-B", sandbox_launcher.__file__],
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(channels),
            start_new_session=True,
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # if it ended at once, `wait` gives the reason
            pipe.write(json.dumps(orders).encode())
        self._process.stdin = None

    def wait(self) -> str:
        """Return how the program ended: "exit 0", "signal 9", "time", or "setup" with the reason why it never began."""
        try:
            output, errors = self._process.communicate(timeout=self._limits.seconds + SPARE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return "time"
        last = (errors.decode(errors="replace").strip().splitlines() or ["it wrote nothing"])[-1]
        return output.decode(errors="replace").strip() or f"setup {last}"

    def __enter__(self) -> Self:
        """Return the program."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the program: the kernel kills it when its launcher dies."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


def _get_interpreter() -> str:
    """Return the interpreter outside of virtual environments."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def list_shown_paths() -> list[str]:
    """Return the paths that a program can read: Python and shared libraries; none lies in another."""
    prefix = os.path.realpath(sys.base_prefix)
    wanted = [prefix, os.path.dirname(os.path.realpath(_get_interpreter())), *LIBRARIES]
    shown: list[str] = []
    for path in sorted({path for path in wanted if os.path.lexists(path)}, key=len):
        if not any(path == other or path.startswith(other + "/") for other in shown):
            shown.append(path)
    return shown


def _find_shown_home() -> str | None:
    """Return the path of `list_shown_paths` that contains the user's home folder, such as with `--prefix=$HOME`."""
    home = os.path.realpath(os.path.expanduser("~"))
    return next((path for path in list_shown_paths() if f"{home}/".startswith(f"{os.path.realpath(path)}/")), None)


PROBE = """
import os, socket
free = []
try:
    socket.socket()
    free.append("network")
except OSError:
    pass
try:
    os.fork()
    free.append("processes")
except OSError:
    pass
if os.path.exists(SECRET):
    free.append("files")
for path in SHOWN:
    try:
        os.mkdir(path + "/fedpeft-probe")
        os.rmdir(path + "/fedpeft-probe")
        free.append("writing in " + path)
    except OSError:
        pass
if os.environ.keys() - {"LC_CTYPE", "PYTHONHASHSEED"}:
    free.append("environment")
os.write(3, ("free: " + ", ".join(free) if free else "isolated").encode())
"""
"""Program that tries to leave its isolation."""


@functools.cache
def check_isolation() -> None:
    """Check that programs can be isolated on this machine, by a program that tries to get out.

    Raises:
        ConfigError: they can't; names the reason.
    """
    reason = ""
    if not sys.platform.startswith("linux") or not hasattr(os, "pidfd_open"):
        reason = "it has no Linux"
    elif os.path.realpath(sys.base_prefix) == "/":
        reason = "Python is installed in /, so that its files can't be separated"
    elif (home := _find_shown_home()) is not None:
        reason = f"{home} contains both Python and your files, which code could read"
    else:
        reading, writing = os.pipe()
        with tempfile.NamedTemporaryFile() as secret, os.fdopen(reading, "rb") as answers:
            program = PROBE.replace("SECRET", repr(str(Path(secret.name).absolute())))
            program = program.replace("SHOWN", repr(list_shown_paths()))
            with IsolatedProgram({"main.py": program}, [writing], Limits()) as started:
                os.close(writing)
                ended, answer = started.wait(), answers.read().decode()
            if answer != "isolated" or ended != "exit 0":
                reason = answer if ended == "exit 0" else ended.removeprefix("setup ")
    if reason:
        raise ConfigError(
            f"FP1681 this machine can't isolate code that a model wrote ({reason}); leave --run-code out, or use "
            "Linux on x86_64 or aarch64 with user namespaces"
        )

"""Counts how often our side loads the base, in all of its processes: a line in a file each time."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

FILE, SERVER = "FLOWERTUNE_LOADS", "FLOWERTUNE_SERVER"
"""Variables of the environment, which workers inherit: the file, and the server's process."""


def _watch() -> None:
    """Have this process, and all that are forked from it, note each load."""
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    real = kind.from_pretrained

    def noted(*given: Any, **named: Any) -> Any:
        with open(os.environ[FILE], "a", encoding="ascii") as file:
            file.write("server\n" if os.getpid() == int(os.environ[SERVER]) else "worker\n")
        return real(*given, **named)

    kind.from_pretrained = noted


def count_loads(folder: Path) -> Path:
    """Watch this process and the workers that it starts, from now on; the file that they write to."""
    file = folder / "loads.txt"
    file.touch()
    os.environ[FILE], os.environ[SERVER] = str(file), str(os.getpid())
    context: Any = multiprocessing.get_context("forkserver")
    preload = context.set_forkserver_preload
    context.set_forkserver_preload = lambda names: preload([*names, __name__])
    _watch()
    return file


if FILE in os.environ:  # in the process that workers are forked from
    _watch()

"""A counter of base model loads in all of fedpeft's processes: each load writes a line to a file."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

FILE, SERVER = "FLOWERTUNE_LOADS", "FLOWERTUNE_SERVER"
"""Environment variables that workers inherit: the file, and the id of the server's process."""


def _watch() -> None:
    """Record each load in this process and in all processes forked from it."""
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    real = kind.from_pretrained

    def load_and_record(*given: Any, **named: Any) -> Any:
        with open(os.environ[FILE], "a", encoding="ascii") as file:
            file.write("server\n" if os.getpid() == int(os.environ[SERVER]) else "worker\n")
        return real(*given, **named)

    kind.from_pretrained = load_and_record


def count_loads(folder: Path) -> Path:
    """Record loads in this process and its future workers; return the file that they write to."""
    file = folder / "loads.txt"
    file.touch()
    os.environ[FILE], os.environ[SERVER] = str(file), str(os.getpid())
    context: Any = multiprocessing.get_context("forkserver")
    preload = context.set_forkserver_preload
    context.set_forkserver_preload = lambda names: preload([*names, __name__])
    _watch()
    return file


if FILE in os.environ:  # this is the process that workers are forked from
    _watch()

"""A process that imports the libraries of fedpeft's commands, but not fedpeft, and forks commands.

A forked command starts at once, while `python -m` spends ten seconds on imports. Otherwise it is the same: it has its
own process, `__main__` is the command's module, and fedpeft comes from the named tree.

`experiments.golden.commands` starts this file as a script, since importing it as part of the package would import
fedpeft. Each line that it reads is a JSON request, and each line that it writes is the answer:

    {"tree": .., "module": .., "words": [..], "folder": .., "log": .., "environment": {..}}     the process id
    {"wait": id}                                                                                its exit code
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path

LIBRARIES = (
    *("torch", "transformers", "peft", "flwr.app", "flwr.serverapp", "grpc", "opacus", "constriction"),
    *("sklearn.linear_model", "scipy.stats", "torchmetrics", "matplotlib.pyplot", "tyro", "rich.progress"),
    *("transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"),
)


def become(tree: str, module: str, words: list[str], folder: str, log: str, environment: dict[str, str]) -> None:
    """Become `python -m module words` in `folder`, with fedpeft from `tree`; output is appended to the file `log`."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(here, there)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where this was started in the background
    os.chdir(folder)
    os.environ.update(environment, PYTHONPATH=tree)
    sys.path.insert(0, tree)
    sys.argv = [module, *words]
    found = Path(str(importlib.import_module("fedpeft").__file__))
    if not found.is_relative_to(tree):
        sys.exit(f"fedpeft was found in {found}, not in {tree}")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Answer requests until there are no more; in a forked process, be the command."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                become(**request)
                return
        print(answer, flush=True)


if __name__ == "__main__":
    main()

"""One side of `experiments.speed.executors`: groups of clients in one batched pass, with the imported commit's code.

It reads one command per line and answers with one line. `case KIND DTYPE LAYERS BATCH CLIENTS ROWS FILE` prepares a
case and writes a state after one untimed group to FILE. `go` trains a group and answers with its seconds of processor
time. It runs as a file, so that it may be newer than the commit.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

os.environ.update({"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})
torch.set_num_threads(1)

from fedpeft.reporting.console import silence_libraries  # noqa: E402

silence_libraries()

from fedpeft.clients.workbench import Workbench  # noqa: E402

from experiments.speed.plain import PlainClient  # noqa: E402
from experiments.speed.workload import Case, create_workload  # noqa: E402
from fedpeft.data.cached_rows import load_cached_examples  # noqa: E402
from fedpeft.peft.adapter import State  # noqa: E402


def prepare_group(kind: str, dtype: str, peft: str, batch: int, clients: int, rows: int) -> Callable[[], State]:
    """Return a function that trains one group, plainly or batched, and returns the last client's state.

    The function has run once.
    """
    with tempfile.TemporaryDirectory() as folder:
        load = create_workload(Case("one pass", clients, rows, batch, dtype, peft), 2, Path(folder))
    plan = load.plan
    group = [load.create_job(client) for client in range(min(clients, plan.clients_per_pass))]
    if kind == "plain":
        plain, examples = PlainClient(plan), load_cached_examples(plan.data_key)

        def one_by_one() -> State:
            return [plain.train(job, examples) for job in group][-1]

        one_by_one()
        return one_by_one
    bench = Workbench(plan)
    if plan.depth:
        store = plan.store(plan.data_key, plan.depth)
        shutil.rmtree(store.folder, ignore_errors=True)  # cached by the other side, with other rounding
        bench.fill(plan.data_key, plan.depth, store.find_missing_tiles())

    def together() -> State:
        state: State = list(bench.executor.train(group))[-1].state
        return state

    together()
    return together


def main() -> None:
    """Answer until there is no more to do."""
    train: Callable[[], State] | None = None
    for line in sys.stdin:
        words = line.split()
        if words[0] == "case":
            kind, dtype, peft, batch, clients, rows, file = words[1:]
            train = prepare_group(kind, dtype, peft, int(batch), int(clients), int(rows))
            torch.save({name: tensor.clone() for name, tensor in train().items()}, file)
            print("ready", flush=True)
        else:
            assert train is not None
            started = time.thread_time()
            train()
            print(time.thread_time() - started, flush=True)


if __name__ == "__main__":
    main()

"""Worker processes of one machine: each holds one workbench, and gets whole groups of clients to train.

Workers are forked from a server process that has imported everything and done nothing else. So they start fast and
share the libraries' memory. A worker ends when its parent dies.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from fedpeft.clients.executor import Job, Totals, Trained
from fedpeft.clients.workbench import Workbench, WorkPlan

from fedpeft.communication.messages import Instruction, Report
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import RunError
from fedpeft.machine.memory import release
from fedpeft.machine.processes import (
    end_with_parent,
    get_forkserver,
    get_storage_variables,
    hide_main_module,
    ignore_interrupts,
    set_storage_variables,
)
from fedpeft.models.answers.exam import Exam, Said
from fedpeft.parts import plugins
from fedpeft.parts.plugins import Recipe
from fedpeft.peft.adapter import State

if TYPE_CHECKING:
    from fedpeft.clients.client import ClientPlan

T = TypeVar("T")


class Worker:
    """A workbench with the clients it speaks for."""

    def __init__(self, work: WorkPlan, clients: ClientPlan) -> None:
        """Load the workbench and the clients that it speaks for."""
        self.bench = Workbench(work)
        self.clients = clients.create_side(self.bench)

    def is_ready(self) -> bool:
        """Return True as soon as the worker has started."""
        return True

    def handle(self, instructions: Sequence[Instruction]) -> list[Report]:
        """Train (or prepare) a group of clients."""
        return self.clients.handle(instructions)

    def check(self, instruction: Instruction) -> None:
        """Refuse a training that can't be carried out."""
        self.clients.check(instruction)

    def train(self, job: Job) -> Trained:
        """Train one job on the plain base, outside of any federation."""
        self.bench.rebase(0)
        return next(self.bench.executor.train([job]))

    def fill(self, data_key: str, depth: int, tiles: list[int], base: str = "") -> int:
        """Compute tiles of the frozen model's output, for a base of the precision `base`.

        `WorkPlan.set_precision` lists the precisions.
        """
        return self.bench.set_precision(base).fill(data_key, depth, tiles)

    def evaluate(self, state: State, rows: np.ndarray, version: int, offsets: torch.Tensor | None = None) -> Totals:
        """Evaluate a state, on the base of `version`, on examples, with `offsets` (classes,) added to logits."""
        return self.bench.evaluate(state, rows, version, offsets=offsets)

    def examine(self, exam: Exam, state: State, version: int) -> list[Said]:
        """Return the answers of a state, on the base of `version`, to the questions of an exam."""
        bench = self.bench.create_whole()
        bench.rebase(version)
        bench.executor.load(state)
        return exam.answer(bench.executor.model, load_tokenizer(bench.plan.model))


class RemoteWorker(Worker):
    """A worker in another process. It loads the plugins first, because its arguments may hold their parts."""

    def __init__(self, recipes: Sequence[Recipe], plans: bytes, device: str = "") -> None:
        """Load the plugins of `recipes`, then the pickled `plans`; `device` replaces the plan's, if given."""
        plugins.use(recipes)
        work, clients = pickle.loads(plans)
        super().__init__(replace(work, device=device or work.device), clients)


def pack_plans(work: WorkPlan, clients: ClientPlan) -> tuple[tuple[Recipe, ...], bytes]:
    """Return the arguments of `RemoteWorker`."""
    return work.plugins, pickle.dumps((work, clients))


class Pool:
    """`workers` processes, or with one worker this process itself; they share `devices` evenly."""

    def __init__(self, work: WorkPlan, clients: ClientPlan, workers: int, devices: Sequence[str]) -> None:
        """Start the processes; with one worker, load it here."""
        self.workers = workers
        self._local: Worker | None = None
        self._processes: ProcessPoolExecutor | None = None
        if workers == 1:
            self._local = Worker(replace(work, device=devices[0]), clients)
            return
        context = get_forkserver()
        closed, self._lifeline = context.Pipe(duplex=False)
        given = (*pack_plans(work, clients), tuple(devices), get_storage_variables(), context.Value("i", 0), closed)
        self._processes = ProcessPoolExecutor(workers, context, _start, given)

    def submit(self, method: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run a method of `Worker` with `arguments` in one of the processes."""
        if self._local is not None:
            future: Future[T] = Future()
            try:
                future.set_result(method(self._local, *arguments))
            except Exception as error:
                future.set_exception(error)
            return future
        assert self._processes is not None
        try:
            with hide_main_module():  # the first calls start the processes
                return self._processes.submit(_call, method.__name__, arguments)
        except BrokenProcessPool as error:
            raise create_worker_error() from error

    def close(self) -> None:
        """End the processes, in the middle of what they compute; a second Ctrl-C waits for their end."""
        if self._processes is not None:
            with ignore_interrupts():
                self._lifeline.close()
                self._processes.shutdown(wait=True, cancel_futures=True)


def get_result(future: Future[T]) -> T:
    """Return the result of a submitted call; the death of a worker becomes one clear error.

    Raises:
        RunError: the worker died, or the GPU has no memory left.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise create_worker_error() from error
    except torch.OutOfMemoryError as error:
        raise RunError(
            "FP5003 the GPU has no memory left; continue with a smaller --batch-size, or start a new run with "
            "a base in fewer bits"
        ) from error


def create_worker_error() -> RunError:
    """Return the error for the death of a worker."""
    return RunError(
        "FP5004 a worker process died (often: out of memory; try fewer --workers or a smaller --batch-size); "
        "continue from the last finished round with --resume"
    )


_worker: Worker | None = None
_not_computing = threading.Lock()  # a worker may be ended while it computes, not while it sends what it computed


def _start(
    recipes: Sequence[Recipe],
    plans: bytes,
    devices: Sequence[str],
    where: Mapping[str, str],
    started: Synchronized[int],
    closed: Connection,
) -> None:
    global _worker
    _not_computing.acquire()
    end_with_parent()
    set_storage_variables(where)
    threading.Thread(target=_end_once_closed, args=(closed,), daemon=True).start()
    with started:
        number = started.value
        started.value += 1
    _worker = RemoteWorker(recipes, plans, devices[number % len(devices)])


def _end_once_closed(pool: Connection) -> None:
    wait([pool])
    _not_computing.acquire()  # an idle worker is ended by the executor
    os._exit(0)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    assert _worker is not None
    _not_computing.release()
    try:
        return getattr(_worker, name)(*arguments)
    finally:
        release()
        _not_computing.acquire()

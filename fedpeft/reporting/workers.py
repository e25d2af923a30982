"""The workers: the processes of this machine, or actors of a cluster, and their plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpeft.clients.client import ClientPlan
from fedpeft.clients.executor import Totals
from fedpeft.clients.masking import MaskPlan
from fedpeft.clients.pool import Pool, Worker, get_result
from fedpeft.clients.ray_pool import RayPool, choose_worker_device, count_default_workers
from fedpeft.clients.workbench import WorkPlan
from fedpeft.communication.messages import Instruction, Report
from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.data.examples import ImageRows
from fedpeft.data.partition import Shards
from fedpeft.data.task_sequence import ClientTasks
from fedpeft.errors import ConfigError, RunError
from fedpeft.machine import cache
from fedpeft.machine.cores import count_allowed_threads, count_usable_cores
from fedpeft.machine.hardware import get_gpu_name, list_accelerators
from fedpeft.machine.shared_cache import VARIABLE
from fedpeft.models import kernels
from fedpeft.models.abilities import ComparesExamples
from fedpeft.models.answers.exam import Exam, Said
from fedpeft.models.answers.generation import BATCH
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.shared_tiles import fetch_missing_tiles
from fedpeft.peft.adapter import State
from fedpeft.privacy.engine import KEY
from fedpeft.privacy.guard import ClientPrivacy
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.reporting.observer import Metrics, RunObserver
from fedpeft.reporting.user_files import MODEL_FILES
from fedpeft.wiring import catalogue
from fedpeft.wiring.activation_cache import count_cached_blocks, is_pooled
from fedpeft.wiring.setup import Setup

T = TypeVar("T")

TOKENS_PER_PASS, GPU_TOKENS_PER_PASS = 1024, 16384
"""Approximate number of tokens in a step, which decides how many clients train in one pass."""

JUDGED_ROWS = 256
"""Number of validation examples that judge each step: few show harm, and a round stays fast."""

TILES_PER_CALL = 4

NOBODY: Final = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Machine:
    """The hardware of a run; a resumed run keeps what it began with.

    Attributes:
        devices: devices that the workers share: "cuda:N", or "cpu".
        workers: number of workers, at least 1.
        kernel: the kernel of frozen products.
        cluster: address of the Ray cluster; empty: one that is started here; None: processes of this machine.
    """

    devices: tuple[str, ...]
    workers: int
    kernel: kernels.Kernel
    cluster: str | None = None

    @classmethod
    def create(cls, setup: Setup, fixed: Mapping[str, Any], devices: Sequence[str] = ()) -> Machine:
        """Return the hardware that the settings ask for, or what this machine has.

        Args:
            setup: the setup of the run.
            fixed: the constants that the run began with; empty: it begins now.
            devices: devices to use; empty: all.

        Raises:
            AssetError: Ray is missing.
            RunError: there is no such cluster.
        """
        config, cluster = setup.config, setup.grid.cluster
        asked = int(fixed.get("workers") or config.workers or setup.grid.spreads)
        if not devices:
            devices = (list_accelerators() or ["cpu"]) if cluster is None else [choose_worker_device(cluster, asked)]
        gpus = [device for device in devices if device != "cpu"]
        if setup.grid.spreads:
            _check_spread(setup, asked, gpus)
        if not asked:
            asked = (len(gpus) or count_usable_cores()) if cluster is None else count_default_workers(cluster)
        dtype = DTYPES[config.dtype]
        kernel: kernels.Kernel = "native" if gpus else fixed.get("kernel", "")
        if kernel not in kernels.list_kernels(dtype):  # a run that begins, or that began on another machine
            kernel = kernels.choose(dtype)
        return cls(tuple(devices), asked, kernel, cluster)

    @property
    def gpus(self) -> list[str]:
        """The GPUs among `devices`."""
        return [device for device in self.devices if device != "cpu"]

    @property
    def tokens_per_pass(self) -> int:
        """The approximate number of tokens in a step, which decides how many clients train in one pass."""
        return GPU_TOKENS_PER_PASS if self.gpus else TOKENS_PER_PASS

    @property
    def threads(self) -> int:
        """The number of threads of this process, once the workers have ended; at most `OMP_NUM_THREADS`."""
        threads = count_usable_cores() if self.gpus else self.workers
        return min(threads, count_allowed_threads() or threads)

    def pin(self, fixed: Mapping[str, Any], work: WorkPlan, folder: Path) -> dict[str, Any]:
        """Return the constants of the run, for checkpoints and the summary.

        Raises:
            RunError: the data or the model of a resumed run has changed.
        """
        for name, value in (("data", work.data_key), ("model", work.model_key)):
            if fixed.get(name, value) != value:
                raise RunError(
                    f"FP5194 the run in {folder} can't be continued: its {name} has changed since it began; put back "
                    "what was there, or start a new run"
                )
        return {
            **fixed,
            "workers": self.workers,
            "kernel": self.kernel,
            "torch": torch.__version__,
            "cpu": kernels.get_cpu_name(),
            "gpus": [get_gpu_name(device) for device in self.gpus],
            "data": work.data_key,
            "model": work.model_key,
        }


def _check_spread(setup: Setup, workers: int, gpus: Sequence[str]) -> None:
    """Reject a base over several GPUs if there are none, or if other settings need it on one.

    Raises:
        ConfigError: the message contains the conflict and the remedy.
    """
    if len(gpus) < 2:
        raise ConfigError(
            f"FP1397 spread divides a base among several GPUs, and there are {len(gpus)}; leave it out of --grid"
        )
    if workers > 1:
        raise ConfigError(
            f"FP1398 spread has one worker on all GPUs, and --workers is {workers}; leave one of them out"
        )
    if setup.task.translates:
        raise ConfigError("FP1399 spread divides one stack of blocks, and seq2seq has two; leave it out of --grid")
    if setup.task.encodes or isinstance(setup.task, ComparesExamples):
        raise ConfigError(
            "FP1400 spread is for language models; leave it out of --grid, and each GPU has a worker of its own"
        )
    if setup.mechanism is not None and setup.mechanism.per_example:
        raise ConfigError(
            f"FP1401 spread has no gradients per example, which {setup.mechanism.name} needs; leave one out"
        )


def _can_batch(setup: Setup, machine: Machine) -> bool:
    """Return whether many clients can train in one pass. The gain of bases in few bits is only measured on GPUs."""
    every_part = setup.method.batched and setup.task.batched and not setup.training.optimizer.rows_per_pass
    return every_part and bool(machine.gpus or not setup.method.base_precision)


def create_work_plan(
    setup: Setup,
    machine: Machine,
    data_key: str,
    folder: Path,
    labels: NDArray[np.int64] | None = None,
    holders: int = 0,
) -> WorkPlan:
    """Return the plan of the workers in a run whose files are in `folder`.

    Args:
        setup: the setup of the run.
        machine: the hardware.
        data_key: cache key of the examples.
        folder: folder of the run.
        labels: labels that replace the data's own.
        holders: number of simulated clients that hold the examples.
    """
    config = setup.config
    traced = setup.is_private_per_example and setup.method.privacy == "vmap"
    # Methods without a batched form reuse blocks, too.
    reusing = setup.grid.executor == "batched" and not traced and not setup.grid.spreads
    executor = "sequential"
    if setup.is_private_per_example:
        executor = "private"
    elif reusing and _can_batch(setup, machine):
        executor = "batched"
    examples = load_cached_examples(data_key)
    lengths, frames = examples.lengths, examples.sequences if isinstance(examples, ImageRows) else 1
    tokens = frames * (float(lengths.mean()) if len(lengths) else setup.tokens)
    return WorkPlan(
        task=setup.task,
        method=setup.method,
        model=setup.model_directory,
        model_key=cache.hash_files(setup.model_directory, MODEL_FILES),
        width=setup.width,
        data_key=data_key,
        classes=setup.facts.classes,
        layout=setup.layout,
        dtype=config.dtype,
        executor=executor,
        clients_per_pass=max(1, round(machine.tokens_per_pass / (config.batch_size * tokens))),
        depth=count_cached_blocks(setup, lengths, holders) if reusing else 0,
        pooled=reusing and is_pooled(setup) and not setup.drift.changes_loss,
        kernel=machine.kernel if executor == "batched" else "native",
        threads=1,
        device=machine.devices[0],
        training=setup.training,
        seed=config.seed,
        residuals=folder / "base",
        labels=labels,
        spread=tuple(machine.gpus) if setup.grid.spreads else (),
        plugins=tuple(plugin.recipe for plugin in catalogue.find_used_plugins(config)),
        code=setup.code,
    )


def create_client_plan(
    setup: Setup,
    partition: Shards,
    folder: Path,
    held_out: float,
    privacy: ClientPrivacy | None,
    tasks: NDArray[np.int64] | None = None,
) -> ClientPlan:
    """Return the plan of the clients in a run whose files are in `folder`.

    Args:
        setup: the setup of the run.
        partition: the examples of each client.
        folder: folder of the run.
        held_out: share of a client's examples that it evaluates on, and does not train on.
        privacy: the mechanism's settings at clients; None: there is none.
        tasks: task of each example; None: there is one task.
    """
    sequence = setup.facts.tasks
    return ClientPlan(
        partition=partition,
        uplink=setup.uplink,
        downlink=setup.downlink,
        start={} if setup.downlink.lossless else setup.start,
        statistics=setup.statistics,
        lossless=setup.lossless,
        head=setup.head,
        strategy=setup.strategy,
        drift=setup.drift,
        store=folder / "clients",
        held_out=held_out,
        privacy=privacy,
        masks=_create_mask_plan(setup, folder),
        met=None if sequence is None or tasks is None else ClientTasks(sequence, tasks),
    )


def _create_mask_plan(setup: Setup, folder: Path) -> MaskPlan | None:
    """Return the plan of clients for sums under masks; None: there are none."""
    secure = setup.secure_sum
    if secure is None:
        return None
    noise = (secure, folder / KEY) if isinstance(secure, SharedNoise) else None
    return MaskPlan(secure, setup.by_rows, setup.clients, noise=noise)


class Workers:
    """The workers, started when they are first needed.

    Args:
        work: plan of the workers.
        clients: plan of the clients.
        machine: the hardware.
        observer: receives the progress.
        validation: examples that the global model is evaluated on, (rows,); empty: it can't be evaluated.
    """

    def __init__(
        self,
        work: WorkPlan,
        clients: ClientPlan,
        machine: Machine,
        observer: RunObserver,
        validation: NDArray[np.int64] = NOBODY,
    ) -> None:
        """Hold the plans; start nothing."""
        self.work = work
        self.clients = clients
        self.machine = machine
        self.observer = observer
        self.validation = validation

    @cached_property
    def pool(self) -> Pool:
        """The processes, or actors."""
        machine = self.machine
        if machine.cluster is not None:
            cache.offer(self.work.model)
            return RayPool(self.work, self.clients, machine.workers, machine.cluster)
        return Pool(self.work, self.clients, machine.workers, machine.devices)

    def start(self) -> None:
        """Start the workers if they have not started; return once one of them is ready.

        Raises:
            RunError: a worker has died.
        """
        if "pool" in self.__dict__:
            return
        workers = self.machine.workers
        self.observer.phase("starting the workers" if workers > 1 else "loading the model", 1)
        calls = [self.pool.submit(Worker.is_ready) for _ in range(workers)]
        get_result(next(_iterate_completed(calls)))

    def freeze(self, data_key: str, depth: int, name: str, base: str = "") -> None:
        """Compute the missing part of the frozen model's output on some examples, with all workers.

        Args:
            data_key: cache key of the examples.
            depth: number of frozen blocks.
            name: name of the phase.
            base: precision of the base; empty: the run's own.

        Raises:
            RunError: a worker has died, or writes to another cache.
        """
        cache.offer(cache.get_cache_directory() / f"rows-{data_key}")
        missing = fetch_missing_tiles(self.work.set_precision(base).store(data_key, depth))
        if not missing:
            return
        self.start()
        self.observer.phase(name, len(missing))
        calls = (
            self.pool.submit(Worker.fill, data_key, depth, missing[i : i + TILES_PER_CALL], base)
            for i in range(0, len(missing), TILES_PER_CALL)
        )
        for call in _iterate_completed(calls):
            self.observer.advance(get_result(call))
        if fetch_missing_tiles(self.work.set_precision(base).store(data_key, depth)):
            raise RunError(
                "FP5195 the workers' results are not in this machine's cache; on a cluster, set FEDPEFT_CACHE to a "
                f"file system that all machines share, or {VARIABLE} to a storage"
            )

    def freeze_rows(self, bases: Sequence[str] = ()) -> None:
        """Compute the frozen model's output on the clients' examples, if it is reused.

        Args:
            bases: other precisions of the base that also compute it.
        """
        for base in ("", *bases):
            if not self.work.task.encodes and not self.work.set_precision(base).depth:
                continue
            name = f"frozen layers{f' in {base}' if base else ''} (kept for later runs)"
            self.freeze(self.work.data_key, self.work.set_precision(base).depth, name, base)

    def evaluate(self, state: State, version: int) -> Metrics:
        """Evaluate the global state on the base of `version`, on the validation set in the run's own precision."""
        totals = self.score(state, version, self.validation)
        return Metrics(totals.mean_loss, totals.accuracy, predictions=totals.count)

    def compute_validation_loss(self, state: State, version: int) -> float:
        """Compute the loss on at most `JUDGED_ROWS` validation examples, spread evenly, as `evaluate` does."""
        stride = max(1, len(self.validation) // JUDGED_ROWS)
        loss: float = self.score(state, version, self.validation[::stride][:JUDGED_ROWS]).mean_loss
        return loss

    def examine(self, exam: Exam, state: State, version: int) -> list[Said]:
        """Return the answers of the global state on the base of `version` to questions, split over workers."""
        shares = [exam.questions[i : i + BATCH] for i in range(0, len(exam.questions), BATCH)]
        calls = [self.pool.submit(Worker.examine, replace(exam, questions=s), state, version) for s in shares]
        return [said for call in calls for said in get_result(call)]

    def score(self, state: State, version: int, rows: NDArray[np.int64], offsets: Tensor | None = None) -> Totals:
        """Score a state on `rows` of the training data, with `offsets` (classes,) added to its logits."""
        # Examples that are compared have one worker, or the result would depend on the number of workers.
        together = isinstance(self.work.task, ComparesExamples)
        shares = np.array_split(rows[np.argsort(self._lengths[rows])], 1 if together else self.machine.workers * 2)
        calls = [self.pool.submit(Worker.evaluate, state, share, version, offsets) for share in shares if len(share)]
        return sum((get_result(call) for call in calls), Totals())

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = load_cached_examples(self.work.data_key).lengths
        return lengths

    def answer(self, instruction: Instruction) -> Report:
        """Return one client's answer."""
        reports: list[Report] = get_result(self.pool.submit(Worker.handle, [instruction]))
        return reports[0]

    def check(self, instruction: Instruction) -> None:
        """Reject an instruction that a client can't carry out, before a ledger charges it.

        Raises:
            FedpeftError: the message contains the reason.
        """
        if instruction.kind == "train":
            get_result(self.pool.submit(Worker.check, instruction))

    def close(self) -> None:
        """End the workers."""
        if "pool" in self.__dict__:
            self.pool.close()


def _iterate_completed(calls: Iterable[Future[T]]) -> Iterator[Future[T]]:
    """Yield calls as they end.

    A single worker, which is this process, ends each call before the next begins.
    """
    running = []
    for call in calls:
        if call.done():
            yield call
        else:
            running.append(call)
    yield from as_completed(running)

"""Workers as Ray actors, on this machine or a cluster: the same workers, and the same groups, as those of a pool.

Each actor holds one workbench, so the base model is loaded once. If an actor dies, a new one runs its group again, or
one of the others if a lost machine leaves no room. The result is the same, because clients derive all randomness from
the round and their ids. On a cluster the run's folder and the cache (FEDPEFT_CACHE) must be on a file system that all
machines share. Each machine may have its own cache if FEDPEFT_SHARED_CACHE names object storage.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from fedpeft.clients.pool import Pool, RemoteWorker, create_worker_error, pack_plans
from fedpeft.clients.workbench import WorkPlan

from fedpeft.errors import RunError, is_disk_full, require_extra
from fedpeft.machine.processes import restore_sigterm

if TYPE_CHECKING:
    from fedpeft.clients.client import ClientPlan

T = TypeVar("T")

ATTEMPTS = 3
"""Times that a group is run before the run is given up: what kills three actors will kill a fourth."""

PATIENCE = 300.0
"""Seconds that a new actor may take to start; it waits while the cluster is short of machines."""


def connect(address: str) -> dict[str, float]:
    """Join the cluster at `address` ("auto": the one running here), or start one; return its CPUs and GPUs.

    Raises:
        AssetError: ray is not installed.
        RunError: there is no cluster at `address`, or no room for Ray's files.
    """
    require_extra("ray", "ray", "--grid ray")
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default lets all other processes go first
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    if address:
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "address": address}
    if not ray.is_initialized():
        try:
            _check_address(address)
            with restore_sigterm():
                ray.init(**quiet)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            if is_disk_full(error):
                raise RunError(
                    f"FP5005 the disk is full where Ray keeps its files ({reason}); free some space, or set RAY_TMPDIR "
                    "to a folder on another disk"
                ) from None
            raise RunError(
                f"FP5006 there is no Ray cluster at {address or 'this machine'}: {reason}; start one, or leave "
                "address out"
            ) from None
    resources: dict[str, float] = ray.cluster_resources()
    return {kind: resources.get(kind, 0.0) for kind in ("CPU", "GPU")}


def _check_address(address: str) -> None:
    """Raise an OSError at once if nobody listens at `address`; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=5).close()


def count_default_workers(address: str) -> int:
    """Return one worker per GPU of the cluster, or per CPU if it has no GPU."""
    resources = connect(address)
    return max(1, int(resources["GPU"] or resources["CPU"]))


def choose_worker_device(address: str, workers: int) -> str:
    """Return what `workers` workers (0: the default number) compute on: "cuda" if each has a GPU, else "cpu"."""
    gpus = int(connect(address)["GPU"])
    return "cuda" if gpus >= max(1, workers) else "cpu"


class RayPool(Pool):
    """A pool of `workers` actors.

    Raises:
        RunError: there is no cluster, or it has no room for them.
    """

    def __init__(self, work: WorkPlan, clients: ClientPlan, workers: int, address: str) -> None:
        """Join the cluster at `address` and create the actors."""
        self.workers = workers
        resources = connect(address)
        gpus = work.device != "cpu"
        if not gpus and resources["CPU"] < workers:
            raise RunError(
                f"FP5007 the Ray cluster has {resources['CPU']:g} CPUs, but {workers} workers are requested; give "
                "fewer --workers"
            )
        self._given = pack_plans(work, clients)
        self._needs = {"num_cpus": 0 if gpus else 1, "num_gpus": 1 if gpus else 0}
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()  # None: no actor is left
        self._left, self._counting = workers, threading.Lock()
        for _ in range(workers):
            self._idle.put(self._create_actor())
        self._callers = ThreadPoolExecutor(workers)

    def _create_actor(self) -> Any:
        import ray

        return ray.remote(**self._needs)(RemoteWorker).remote(*self._given)

    def submit(self, method: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run a method of `Worker` with `arguments` in one of the actors."""
        return self._callers.submit(self._call, method.__name__, arguments)

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        actor = self._take_idle_actor()
        try:
            for _ in range(ATTEMPTS):
                try:
                    return ray.get(getattr(actor, name).remote(*arguments))
                except RayTaskError as error:
                    raise error.cause from error  # what the worker itself raised, and where
                except RayActorError as error:
                    if getattr(error, "actor_init_failed", False):
                        told = str(error).strip().splitlines()[-1].removeprefix("fedpeft.errors.")
                        raise RunError(f"FP5008 a worker of the Ray cluster could not start: {told}") from None
                    actor = None
                    actor = self._replace_actor()
            raise create_worker_error()
        finally:
            if actor is not None:
                self._idle.put(actor)

    def _take_idle_actor(self) -> Any:
        """Return an actor that does nothing, as soon as there is one."""
        actor = self._idle.get()
        if actor is None:
            self._idle.put(None)  # wakes the other waiting callers
            raise create_worker_error()
        return actor

    def _replace_actor(self) -> Any:
        """Return a new actor instead of one that has died, or one of the others if there is no room for it."""
        import ray

        made = self._create_actor()
        if ray.wait([made.__ray_ready__.remote()], timeout=PATIENCE)[0]:
            return made
        ray.kill(made)
        with self._counting:
            self._left -= 1
            if not self._left:
                self._idle.put(None)
        return self._take_idle_actor()

    def close(self) -> None:
        """End the actors; a cluster that was there before goes on."""
        import ray

        self._callers.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            if (actor := self._idle.get()) is not None:
                ray.kill(actor)

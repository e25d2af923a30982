"""What a worker process holds: the frozen base, the examples, and one executor that trains adapters on them.

A simulation has one workbench per core (or GPU), a Ray worker has one, and so has an edge client. It is built from a
`WorkPlan`, which can be pickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.executor import Executor, Totals
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.sequential import SequentialExecutor
from torch import nn

from fedpeft.communication.base_residual import ResidualFiles
from fedpeft.data.cached_rows import load_cached_examples
from fedpeft.data.examples import Examples, RelabeledRows
from fedpeft.machine import cache
from fedpeft.machine.cache import get_cache_directory
from fedpeft.machine.memory import keep_freed
from fedpeft.models.abilities import DescribesImages
from fedpeft.models.checkpointing import checkpoint_blocks
from fedpeft.models.determinism import compute_deterministically
from fedpeft.models.determinism_check import check_repeats
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.frozen_blocks import ActivationCache, cut_below, get_sequences, start_from_store
from fedpeft.models.kernels import Kernel, install_fast_linears
from fedpeft.models.packed_tokens import PackedTokens, can_pack_tokens
from fedpeft.models.pooled_rows import PooledRows, create_pass_through
from fedpeft.models.quantized_base import Precision, quantize
from fedpeft.models.scoring import move_batch
from fedpeft.models.shared_tiles import fetch_missing_tiles, offer
from fedpeft.models.spread import spread_model
from fedpeft.models.task import FederatedModel, Task
from fedpeft.parts import plugins
from fedpeft.parts.plugins import Recipe
from fedpeft.peft.adapter import AdapterShape, Layout, State
from fedpeft.peft.method import PeftMethod

KERNELS = "64"
"""Number of oneDNN kernels to keep. The default, 1024, costs scratch memory for each shape of a product."""


@dataclass(frozen=True)
class WorkPlan:
    """Everything that a worker needs; it can be pickled.

    Attributes:
        task: the task of the dataset.
        method: the PEFT method.
        model: folder of the base model; `model_key` is a hash of its weights, `width` its hidden size.
        data_key: name of the tokenized training set in the cache.
        classes: number of classes (0: language modeling).
        layout: the trainable tensors.
        dtype: data type of the base: "bf16", "fp32" or "fp64".
        executor: "batched", "sequential", or "private": sequential with DP-SGD.
        clients_per_pass: K of the batched executor.
        depth: index of the lowest block with an adapter if the activation cache holds the output of the blocks below;
            0: no cache.
        pooled: whether examples are read as their pooled features, in place of any other use of the cache.
        kernel: how frozen products are computed.
        threads: of torch, per worker.
        device: "cpu" or "cuda:N".
        training: settings of local training.
        seed: seed of the run.
        residuals: folder of what exact rules have put into the base, by version
            (`fedpeft.communication.base_residual`).
        spread: devices that the base's blocks lie on, `device` first; empty: all of it is on `device`.
        precision: number format of the quantized frozen layers; empty: they are in `dtype`.
        plugins: what the parts from outside are loaded from.
        code: what identifies the user's own code that computes the base; empty: there is none.
        labels: other labels (n,) of the training set than the data's; None: the data's.
    """

    task: Task
    method: PeftMethod
    model: Path
    model_key: str
    width: int
    data_key: str
    classes: int
    layout: Layout
    dtype: str
    executor: str
    clients_per_pass: int
    depth: int
    kernel: Kernel
    threads: int
    device: str
    training: LocalTraining
    seed: int
    residuals: Path
    plugins: tuple[Recipe, ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    labels: np.ndarray | None = None
    precision: Precision = ""
    spread: tuple[str, ...] = ()
    pooled: bool = False

    def set_precision(self, base: str) -> WorkPlan:
        """Return the plan for a base of another precision: fp32, bf16, int8 or nf4; empty: the run's own.

        On a CPU a quantized base trains one client after another. So do nf4, and methods whose batched layers do not
        support quantization.
        """
        if base in ("", self.dtype):
            return self
        if base in DTYPES:
            return replace(self, dtype=base, kernel="native")
        quantized: Precision = "nf4" if base == "nf4" else "int8"
        together = self.device != "cpu" and quantized == "int8" and self.method.batched_in_few_bits
        executor = "sequential" if self.executor == "batched" and not together else self.executor
        return replace(self, precision=quantized, executor=executor, depth=0, pooled=False, kernel="native")

    def store(self, data_key: str, depth: int) -> ActivationCache:
        """Return the activation cache of the examples under `data_key`, for the blocks below `depth`."""
        more = {**self.method.base_as_read(self.precision), **self.code}
        if self.device != "cpu":  # a GPU rounds differently
            more["device"] = self.device.partition(":")[0]
        name = cache.compute_key(rows=data_key, model=self.model_key, dtype=self.dtype, depth=depth, **more)
        examples = get_sequences(load_cached_examples(data_key))
        return ActivationCache(
            get_cache_directory() / f"frozen-{name}", examples, depth, self.width, DTYPES[self.dtype]
        )


class Workbench:
    """The loaded state of one worker."""

    def __init__(self, plan: WorkPlan) -> None:
        """Set up torch for this process; models and data are loaded when they are first used."""
        torch.set_num_threads(plan.threads)
        keep_freed()
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
        if plan.device.startswith("cuda"):
            compute_deterministically()
        self.plan = plan = replace(plan, model=cache.find_local_folder(plan.model))
        plugins.use(plan.plugins)
        self.task = plan.task
        self.method = plan.method
        self._stores: dict[tuple[str, int], ActivationCache] = {}
        self._filled = False  # the activation cache of the training set
        self._version = 0
        self._others: dict[str, Workbench] = {}

    def set_precision(self, base: str) -> Workbench:
        """Return the workbench of clients whose base has another precision (see `WorkPlan.set_precision`)."""
        plan = self.plan.set_precision(base)
        if plan is self.plan:
            return self
        if base not in self._others:
            self._others[base] = Workbench(plan)
        return self._others[base]

    def create_sequential(self) -> Workbench:
        """Return the workbench that trains one client after another; its model has the peft library's own layers."""
        if self.plan.executor == "sequential":
            return self
        if "plain" not in self._others:
            self._others["plain"] = Workbench(replace(self.plan, executor="sequential", kernel="native"))
        return self._others["plain"]

    @cached_property
    def examples(self) -> Examples:
        """The training set."""
        return self._relabel(load_cached_examples(self.plan.data_key))

    def _relabel(self, rows: Examples) -> Examples:
        return rows if self.plan.labels is None else RelabeledRows(rows, self.plan.labels)

    @cached_property
    def base(self) -> nn.Module:
        """The frozen base; for the batched executor with fast frozen layers."""
        base = self.task.base(self.plan.model, DTYPES[self.plan.dtype])
        base = base if self.plan.spread else base.to(self.plan.device)
        quantize(base, self.plan.precision or self.method.base_precision)
        self.method.read(base)
        if self.plan.executor == "batched":
            install_fast_linears(base, self.plan.kernel)
        if self.plan.code and not self.plan.spread:
            check_repeats(base, get_sequences(load_cached_examples(self.plan.data_key)))
        return base

    def store(self, data_key: str, depth: int) -> ActivationCache:
        """Return the activation cache of the examples under `data_key`, for the blocks below `depth`."""
        key = (data_key, depth)
        if key not in self._stores:
            self._stores[key] = self.plan.store(data_key, depth)
            fetch_missing_tiles(
                self._stores[key]
            )  # a machine that shares no file system reads what is in the shared cache
        return self._stores[key]

    def fill(self, data_key: str, depth: int, tiles: list[int]) -> int:
        """Compute tiles of the activation cache before any adapter is attached, and return how many were asked for.

        Tiles that others have computed meanwhile are skipped.
        """
        store = self.store(data_key, depth)
        if tiles:
            with PackedTokens(self.base) if self._can_pack else nullcontext():
                for tile in tiles:
                    if not store.has(tile):
                        store.fill(tile, self.base)
                        offer(store, [tile])
        return len(tiles)

    def fill_store(self) -> ActivationCache:
        """Return the activation cache of the training set, complete even if this machine's cache lacked parts.

        The workers of a machine begin at different tiles, and so share them.
        """
        plan = self.plan
        store = self.store(plan.data_key, plan.depth)
        if not self._filled:
            missing = fetch_missing_tiles(store)
            turn = os.getpid() % max(1, len(missing))
            self.fill(plan.data_key, plan.depth, missing[turn:] + missing[:turn])
            self._filled = True
        return store

    @cached_property
    def _can_pack(self) -> bool:
        """Whether the frozen base can work without padding."""
        return can_pack_tokens(self.base)

    @cached_property
    def executor(self) -> Executor:
        """The executor of the plan."""
        plan = self.plan
        rows = self.examples
        if plan.pooled:
            rows = self._relabel(PooledRows(self.fill_store()))
        if plan.depth:
            rows = self._relabel(start_from_store(load_cached_examples(plan.data_key), self.fill_store()))
        base = self.base
        del self.base  # the executor changes its layers; the rest is freed
        if plan.depth:
            base = cut_below(base, plan.depth)
        if plan.pooled:
            base = create_pass_through(base)
        if plan.training.optimizer.checkpointing:
            checkpoint_blocks(base)
        model: FederatedModel = self.task.model(base, plan.classes)
        if plan.executor == "batched":
            return BatchedExecutor(model, self.task, self.method, rows, plan.layout, plan.clients_per_pass, plan.kernel)
        self.method.attach(model, plan.dtype)
        if plan.executor == "private":
            from fedpeft.clients.private import PrivateExecutor  # Opacus: only where it is used

            return PrivateExecutor(model.to(plan.device), self.task, rows, plan.layout, self.method.privacy)
        if plan.spread:
            spread_model(model, plan.spread)
        else:
            model.to(plan.device)
        return SequentialExecutor(model, self.task, rows, plan.layout)

    def create_whole(self) -> Workbench:
        """Return the workbench whose model reads and writes tokens: all of the base, with the peft library's layers."""
        if self.plan.executor == "sequential" and not self.plan.depth and not self.plan.pooled:
            return self
        if "whole" not in self._others:
            self._others["whole"] = Workbench(
                replace(self.plan, executor="sequential", kernel="native", depth=0, pooled=False)
            )
        return self._others["whole"]

    def get_labels(self, rows: np.ndarray) -> torch.Tensor:
        """Return the classes of examples, (rows,); in language modeling, a batch's labels."""
        labels = getattr(self.examples, "labels", None)
        return self.examples.batch(rows)["labels"] if labels is None else torch.from_numpy(labels[rows])

    def features(self, rows: np.ndarray) -> torch.Tensor:
        """Return the frozen model's pooled features of examples, (rows, width)."""
        return self.fill_store().read_features(rows)

    def load_regression_data(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features and targets that a closed-form head is fitted to.

        Features are (rows, width). Targets are classes or numbers (rows,), or which labels an example has, bool (rows,
        labels). If the task defines its own targets, they are (rows, outputs).
        """
        if not isinstance(self.task, DescribesImages):
            labels = self.get_labels(rows)
            return self.features(rows), labels > 0 if self.task.targets == "labels" else labels
        model = self.executor.model
        batch = move_batch(self.examples.batch(rows), model)
        features, targets = self.task.compute_regression_data(model, batch)
        return features.cpu(), targets.cpu()

    def rebase(self, version: int) -> None:
        """Put the adapted layers on W0 plus the residual of `version`; 0: on W0."""
        if version != self._version:
            self.executor.set_residual(ResidualFiles(self.plan.residuals).get(version))
            self._version = version

    def evaluate(
        self,
        state: State,
        rows: np.ndarray,
        version: int = 0,
        form: AdapterShape | None = None,
        offsets: torch.Tensor | None = None,
    ) -> Totals:
        """Return loss and correct predictions of the model with `state` on `rows`.

        `version` selects the base, `form` is the adapter shape; `offsets` (classes,) are added to the logits.
        """
        self.rebase(version)
        return self.executor.evaluate(state, rows, form, offsets)

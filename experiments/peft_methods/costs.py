"""The cost of a training step and an answer with each method, on one client: time, and training memory.

Times are medians of passes that take turns: each pass times every method once, so that a slow moment of the machine
affects all of them. Memory is counted, not sampled. It includes the base as held, trained parameters with their
gradients and AdamW's two moments, activations kept for the backward pass, and the largest layer that is decoded.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from fedpeft.data.examples import Batch
from fedpeft.models.base_model import resolve_model
from fedpeft.models.quantized_base import QuantizedLinear, quantize
from fedpeft.models.task import FederatedModel, Task, find_trainable
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.peft.abilities import SavedAsLora

ROWS, TOKENS, CLASSES = 8, 48, 20
WARM_UP, PASSES = 2, 9


@dataclass(frozen=True)
class Costs:
    """The costs of one method.

    Attributes:
        parameters, share: trained parameters, including the head, and their share of the model.
        payload: bytes of one update in fp32, uncompressed.
        step: seconds of one step, sequential, fp32.
        answer: seconds of one forward pass.
        merged: seconds of one forward pass after merging the adapter into the base; None if merging is not exact.
        memory: bytes that training needs, including the base.
    """

    parameters: int
    share: float
    payload: int
    step: float
    answer: float
    merged: float | None
    memory: int


@dataclass
class Bench:
    """One method on its own model, with its timings."""

    spec: str
    model_name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Load the base, attach the method and count the memory."""
        folder = resolve_model(self.model_name)
        self.task: Task = TASKS.build("classification")
        method = PEFT_METHODS.build(self.spec)
        base: Any = self.task.base(folder, torch.float32)
        self.size = sum(p.numel() for p in self.task.model(base, CLASSES).parameters())
        quantize(base, method.base_precision)
        self.model: FederatedModel = self.task.model(base, CLASSES)
        method.attach(self.model, "fp32")
        self.chosen = find_trainable(self.model)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, min(1000, base.config.vocab_size), (ROWS, TOKENS), generator=generator)
        self.batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(ROWS) % CLASSES}
        self.merged: FederatedModel | None = None
        saved_first = not method.in_peft and isinstance(method, SavedAsLora)  # and merged afterwards
        if method.merges and not saved_first:
            self.merged = copy.deepcopy(self.model).eval()
            self.merged.base = method.merge_adapter(self.merged)
        self.memory = _measure_memory(self.model, self.task, self.batch, sum(p.numel() for p in self.chosen.values()))
        self.optimizer = torch.optim.AdamW(list(self.chosen.values()), lr=1e-4, fused=True)

    def step(self) -> None:
        """Take one training step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.task.losses(self.model(self.batch), self.batch).sums.mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def run(self) -> None:
        """Time the step and the answers once."""
        self._time("step", self.step)
        for name, model in (("answer", self.model), ("merged", self.merged)):
            if model is not None:
                with torch.inference_mode():
                    self._time(name, partial(model, self.batch))

    def _time(self, name: str, call: Callable[[], object]) -> None:
        started = time.perf_counter()
        call()
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)

    def get_costs(self) -> Costs:
        """Return the costs measured so far."""
        median = {name: statistics.median(found[WARM_UP:]) for name, found in self.seconds.items()}
        numbers = sum(p.numel() for p in self.chosen.values())
        share = numbers / self.size
        return Costs(numbers, share, 4 * numbers, median["step"], median["answer"], median.get("merged"), self.memory)


def measure(specs: Mapping[str, str], model_name: str) -> dict[str, Costs]:
    """Return the costs of methods on the base `model_name`, by label."""
    benches = {label: Bench(spec, model_name) for label, spec in specs.items()}
    for _ in range(WARM_UP + PASSES):
        for bench in benches.values():
            bench.run()
    return {label: bench.get_costs() for label, bench in benches.items()}


def _measure_memory(model: FederatedModel, task: Task, batch: Batch, trained: int) -> int:
    held = sum(t.nbytes for t in {p.data_ptr(): p for p in [*model.parameters(), *model.buffers()]}.values())
    few_bits = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    held += sum(_count_scale_bytes(layer.state) for layer in few_bits)
    decoded = max((4 * layer.in_features * layer.out_features for layer in few_bits), default=0)
    return held + decoded + 12 * trained + _measure_kept(model, task, batch)


def _count_scale_bytes(state: Any) -> int:
    """Count the bytes that decode a quantized layer: a tensor of scales, or bitsandbytes' nested state."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    inner = getattr(state, "state2", None)
    return int(state.absmax.nbytes) + (_count_scale_bytes(inner) if inner is not None else 0)


def _measure_kept(model: nn.Module, task: Task, batch: Batch) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without parameters."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = task.losses(model(batch), batch).sums.mean()
    del loss
    return sum(found.values())

"""What a training step and an answer cost with each method, on one client: time, and the memory that training needs.

Memory is counted, not sampled: parameters that are trained with their gradients and AdamW's two moments, and what the
forward pass keeps for the backward one. The frozen base is the same for all (but nf4 for qlora) and is counted, too.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from fedpeft.base_model import resolve_model
from fedpeft.examples import Batch
from fedpeft.peft_method import PEFT_METHODS
from fedpeft.quantized import quantize
from fedpeft.task import TASKS, FederatedModel, trainable

ROWS, TOKENS, CLASSES = 8, 48, 20
PASSES = 9


@dataclass(frozen=True)
class Costs:
    """Of one method.

    Attributes:
        parameters, share: trained ones, the head included, and their share of the model.
        payload: bytes of one update in fp32, uncompressed.
        step: seconds of one step, sequential, fp32.
        answer: seconds of one forward pass.
        memory: bytes that training needs, the base included.
    """

    parameters: int
    share: float
    payload: int
    step: float
    answer: float
    memory: int


def measure(spec: str, model_name: str) -> Costs:
    """The costs of the method `spec` on the base `model_name`."""
    folder = resolve_model(model_name)
    task, method = TASKS.build("classification"), PEFT_METHODS.build(spec)
    base: Any = task.base(folder, torch.float32)
    quantize(base, method.base_precision)
    model = task.model(base, CLASSES)
    method.attach(model, "fp32")
    chosen = trainable(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, min(1000, base.config.vocab_size), (ROWS, TOKENS), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(ROWS) % CLASSES}
    optimizer = torch.optim.AdamW(list(chosen.values()), lr=1e-4, fused=True)
    kept = _kept(model, task, batch)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        task.losses(model(batch), batch).sums.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def answer() -> None:
        with torch.inference_mode():
            model(batch)

    numbers = sum(p.numel() for p in chosen.values())
    held = sum(t.nbytes for t in {p.data_ptr(): p for p in [*model.parameters(), *model.buffers()]}.values())
    whole = sum(p.numel() for p in task.model(task.base(folder, torch.float32), CLASSES).parameters())
    return Costs(numbers, numbers / whole, 4 * numbers, _median(step), _median(answer), held + 12 * numbers + kept)


def _kept(model: FederatedModel, task: Any, batch: Batch) -> int:
    """Bytes that a forward pass keeps for the backward one, parameters aside."""
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


def _median(call: Any) -> float:
    found = []
    for _ in range(PASSES + 2):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found[2:])

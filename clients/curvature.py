"""Curvature of a model's loss on a client's examples.

Kronecker factors of LoRA matrices, as sums (`fedpeft.trust.kronecker`), and the diagonal of the Fisher information.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from fedpeft.clients.executor import Executor, Job, view_leading_part
from fedpeft.clients.lora_layers import find_lora_layers, record_layer_values, select_tokens
from fedpeft.clients.transfer import move_tensor
from torch import Tensor

from fedpeft.data.examples import Batch
from fedpeft.machine import seeds
from fedpeft.models.task import FederatedModel, find_trainable
from fedpeft.peft.adapter import State
from fedpeft.trust.kronecker import name_sums

ComputeLogits = Callable[[FederatedModel, Batch], tuple[Tensor, Tensor]]
"""A function from a model and a batch to logits (examples, classes) and labels (examples,)."""


def classify(model: FederatedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return a classifier's logits and the labels."""
    return model(batch), batch["labels"]


def compute_kronecker_sums(
    model: FederatedModel, batches: Iterable[Batch], compute_logits: ComputeLogits = classify
) -> State:
    """Sum a a^T and sum_c p(c) g g^T over the tokens of all examples, under the names of `name_sums`.

    Also return `tokens` (1,) and the summed `loss` (1,) in nats. Positions outside the mask do not count.
    """
    linears = find_lora_layers(model)
    names = name_sums({name: linear.weight.shape for name, linear in linears.items()})
    sums = {"tokens": torch.zeros(1, dtype=torch.float64), "loss": torch.zeros(1, dtype=torch.float64)}
    for name, linear in linears.items():
        out, in_ = linear.weight.shape
        sums[names[name][0]] = torch.zeros(in_, in_, dtype=torch.float64)
        sums[names[name][1]] = torch.zeros(out, out, dtype=torch.float64)
    for batch in batches:
        with record_layer_values(linears) as seen, torch.enable_grad():
            logits, labels = compute_logits(model, batch)
            logs = logits.double().log_softmax(-1)
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
        sums["loss"] -= logs.detach().gather(1, labels[:, None]).sum()
        for count, (name, (a, _)) in enumerate(seen.items()):
            kept = select_tokens(a.detach(), mask)
            sums[names[name][0]] += kept.T @ kept
            sums["tokens"] += len(kept) if count == 0 else 0
        outputs = [y for _, y in seen.values()]
        chances = logs.detach().exp()
        for c in range(logs.shape[1]):
            # The gradient of row n's own log p(c), times sqrt(p(c)): squared, it has the weight p(c).
            weighted = (logs[:, c] * chances[:, c].sqrt()).sum()
            gradients = torch.autograd.grad(weighted, outputs, retain_graph=c < logs.shape[1] - 1)
            for name, g in zip(seen, gradients, strict=True):
                kept = select_tokens(g, mask)
                sums[names[name][1]] += kept.T @ kept
    return sums


def compute_fisher_diagonal(executor: Executor, job: Job, most: int) -> State:
    """Return the mean square of the gradients of single examples, for the tensors that a job trains.

    This is the diagonal of the empirical Fisher information: the labels are those of the examples, not drawn ones. The
    loss of an example is its mean over what it predicts. Dropout is off.

    Args:
        executor: with a model whose parameters are those of one client.
        job: the client's work, from the model that is measured.
        most: the most examples, at least 1; of more, some are drawn.
    """
    executor.load(job.received, job.form)
    parameters = {name: p for name, p in find_trainable(executor.model).items() if name in job.trained}
    device = next(executor.model.parameters()).device
    rows = seeds.create_generator(job.seed, "information", job.round, job.client).permutation(job.rows)[:most]
    sums = {name: torch.zeros_like(job.received[name], dtype=torch.float64, device=device) for name in parameters}
    for row in rows:
        batch = {name: move_tensor(t, device) for name, t in executor.examples.batch(np.array([row])).items()}
        with torch.enable_grad():
            losses = executor.task.row_losses(executor.model, batch, job.offsets)
            loss = losses.sums.sum() / losses.counts.sum().clamp(min=1)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total += view_leading_part(gradient, total).double().square()
    return {name: (total / max(1, len(rows))).cpu() for name, total in sums.items()}


def compute_logit_gradients(
    model: FederatedModel, batch: Batch, compute_logits: ComputeLogits = classify
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits (classes,) of one example, and their gradients by LoRA matrix, (classes, out, in); fp64."""
    linears = find_lora_layers(model)
    weights = [linear.weight for linear in linears.values()]
    with torch.enable_grad():
        logits = compute_logits(model, batch)[0][0]
    rows = [torch.autograd.grad(logit, weights, retain_graph=c < len(logits) - 1) for c, logit in enumerate(logits)]
    gradients = {name: torch.stack([row[i] for row in rows]).double() for i, name in enumerate(linears)}
    return logits.detach().double(), gradients

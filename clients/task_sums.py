"""Sums over a client's examples for task-aware rules: of the model's inner values, and not of its logits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fedpeft.clients.lora_layers import find_lora_layers, record_layer_values, select_tokens
from torch import Tensor

from fedpeft.data.examples import Batch
from fedpeft.models.task import FederatedModel
from fedpeft.peft.adapter import State
from fedpeft.trust.questions.class_sums import ClassSums
from fedpeft.trust.questions.layer_inputs import LayerInputs


def compute_input_moments(model: FederatedModel, batches: Iterable[Batch], question: LayerInputs) -> State:
    """Return sum x x^T over the tokens of all examples for each lora_A, by name: the upper triangle or the diagonal.

    `question.diagonal` selects the diagonal.
    """
    linears = {name: layer for name, layer in find_lora_layers(model).items() if name.endswith(".lora_A.weight")}
    sums: dict[str, Tensor] = {}
    for batch in batches:
        with record_layer_values(linears) as seen, torch.no_grad():
            model(batch)
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
        for name, (inputs, _) in seen.items():
            x = select_tokens(inputs, mask)
            found = x.square().sum(0) if question.diagonal else x.T @ x
            sums[name] = sums[name] + found if name in sums else found
    if question.diagonal:
        return sums
    return {name: matrix[tuple(torch.triu_indices(*matrix.shape))] for name, matrix in sums.items()}


def compute_class_sums(model: FederatedModel, batches: Iterable[Batch], question: ClassSums, classes: int) -> State:
    """Return the statistics of a head on the model's features of all examples."""
    total: State = {}
    for batch in batches:
        with torch.no_grad():
            features = model.features(batch)  # type: ignore[operator]  # of a classifier
        found = question.sum_features(features.cpu(), batch["labels"].cpu(), classes)
        total = {name: total[name] + tensor if name in total else tensor for name, tensor in found.items()}
    return total

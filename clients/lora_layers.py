"""The LoRA layers of a model, and the values that pass through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.models.task import FederatedModel, get_canonical_name


def find_lora_layers(model: FederatedModel) -> dict[str, nn.Linear]:
    """Return the linear layers that hold LoRA's A and B, by the canonical names of their weights."""
    from peft.tuners.lora import LoraLayer

    found: dict[str, nn.Linear] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            for factor in ("lora_A", "lora_B"):
                for own, linear in getattr(layer, factor).items():
                    found[get_canonical_name(f"{name}.{factor}.{own}.weight")] = linear
    return found


@contextmanager
def record_layer_values(linears: Mapping[str, nn.Linear]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Record the input and the output of each layer in every forward pass while the context is open."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0], output

        return hook

    hooks = [linear.register_forward_hook(note(name)) for name, linear in linears.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def select_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the tokens that count, (tokens, d) in fp64; positions of a prompt, before the mask's, count, too."""
    if mask is None or values.ndim < 3:
        return values.reshape(-1, values.shape[-1]).double().cpu()
    extra = values.shape[1] - mask.shape[1]
    mask = torch.nn.functional.pad(mask, (extra, 0), value=True) if extra else mask
    return values[mask.to(values.device)].double().cpu()

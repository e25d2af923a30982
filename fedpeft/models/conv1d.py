"""GPT-2's linear layers as linear layers of torch, so that every adapter and kernel knows them.

transformers calls them Conv1D: y = x W + b with W (in, out), the transpose of torch's. Names stay, and so do files:
what is written of such a layer (`state_dict`, `save_pretrained`) is (in, out) again.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fedpeft.models.layers import replace


def replace_conv1d(base: nn.Module) -> None:
    """Put a linear layer of the same weights in the place of every Conv1D of `base`, in place."""
    from transformers.pytorch_utils import Conv1D

    for path, layer in list(base.named_modules()):
        if isinstance(layer, Conv1D):
            replace(base, path, _create_linear(layer))


def _create_linear(layer: Any) -> nn.Linear:
    out, in_ = layer.nf, layer.nx
    made = nn.Linear(in_, out, device="meta")
    made.weight = nn.Parameter(layer.weight.detach().t().contiguous(), requires_grad=layer.weight.requires_grad)
    made.bias = layer.bias
    made.register_state_dict_post_hook(_transpose_saved_weight)  # type: ignore[no-untyped-call]
    made.register_load_state_dict_pre_hook(_read)  # type: ignore[no-untyped-call]
    return made.train(layer.training)


def _transpose_saved_weight(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()


def _read(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()

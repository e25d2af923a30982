"""GPT-2's linear layers as linear layers of torch, so that every adapter and kernel supports them.

transformers calls them Conv1D: y = x W + b with W (in, out), the transpose of torch's. Names and file formats stay the
same: `state_dict` and `save_pretrained` write the weight of such a layer as (in, out).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fedpeft.models.layers import replace


def replace_conv1d(base: nn.Module) -> None:
    """Replace every Conv1D of `base` by a linear layer with the same weights, in place."""
    from transformers.pytorch_utils import Conv1D

    for path, layer in list(base.named_modules()):
        if isinstance(layer, Conv1D):
            replace(base, path, _create_linear(layer))


def _create_linear(layer: Any) -> nn.Linear:
    out, in_ = layer.nf, layer.nx
    linear = nn.Linear(in_, out, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().t().contiguous(), requires_grad=layer.weight.requires_grad)
    linear.bias = layer.bias
    linear.register_state_dict_post_hook(_transpose_saved_weight)  # type: ignore[no-untyped-call]
    linear.register_load_state_dict_pre_hook(_read)  # type: ignore[no-untyped-call]
    return linear.train(layer.training)


def _transpose_saved_weight(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()


def _read(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()

"""The attention function of this project: transformers' own with learned prefixes.

It computes in fp32 for a bf16 base on a CPU, where torch's bf16 kernel takes over twice as long in the backward pass.
On a GPU it is deterministic. Prefixes (see `peft/methods/prefix_tuning.py`) are a child module `prefix` of the
attention module. A child `prefix_gate` (`peft/methods/unipelt.py`) weighs the heads' outputs with a prefix against
those without. What is added to the heads' outputs (`peft/methods/prefix_tuning_plus.py`) is a child `prefix_plus`.
Without these children nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.models.determinism import make_attention_deterministic
from fedpeft.models.layers import KEY_PROJECTIONS, Layers, choose_blocks, is_single_stack, is_unused
from fedpeft.models.lean_attention import attend_lean
from fedpeft.models.packing import Packing

NAME = "sdpa_fp32"
"""Name of the function for transformers' `attn_implementation`."""


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *rest: Any, **named: Any
) -> Any:
    """Compute attention on (B, heads, T, d) as (B, T, heads, d), plus the module's function of the queries alone."""
    output, weights = _attend_in_wide_dtype(module, query, key, value, mask, *rest, **named)
    if isinstance(gate := getattr(module, "prefix_gate", None), nn.Module):
        plain, _ = _attend_in_wide_dtype(module, query, key, value, mask, *rest, prefixed=False, **named)
        output = gate.mix(plain, output)  # type: ignore[operator]
    if isinstance(plus := getattr(module, "prefix_plus", None), nn.Module):
        output = output + plus(query).to(output.dtype)
    return output, weights


def _attend_in_wide_dtype(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *rest: Any,
    packing: Packing | None = None,
    prefixed: bool = True,
    **named: Any,
) -> Any:
    """Compute scaled dot-product attention on (B, heads, T, d), in at least fp32 on CPUs, in the dtype of `query`.

    It leaves the module's prefix out unless `prefixed`.
    """
    if packing is not None:

        def attend_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            output: Tensor = _attend_in_wide_dtype(module, query, key, value, None, *rest, prefixed=prefixed, **named)[
                0
            ]
            return output

        return packing.attend(attend_rows, query, key, value), None
    if prefixed and isinstance(prefix := getattr(module, "prefix", None), nn.Module):
        causal = named.get("is_causal")
        causal = getattr(module, "is_causal", False) if causal is None else causal
        key, value, counted = prefix(key, value)
        mask = _add_prefix(mask, counted, query, key.shape[2] - counted.shape[1], bool(causal))
        named["is_causal"] = False
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if (lean := attend_lean(module, query, key, value, mask, *rest, **named)) is not None:
        return lean, None
    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        attended = sdpa_attention_forward(module, query, key, value, mask, *rest, **named)
        if query.device.type == "cuda":
            make_attention_deterministic(attended[0])
        return attended
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    if isinstance(bias := named.get("position_bias"), Tensor):  # T5's
        named["position_bias"] = bias.float()
    output, weights = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, *rest, **named)
    return output.to(query.dtype), weights


def _add_prefix(mask: Tensor | None, counted: Tensor, query: Tensor, tokens: int, causal: bool) -> Tensor:
    """Return the mask (B, 1, T, length + T) that also lets every query see the counted positions of its prefix."""
    rows, asking = query.shape[0], query.shape[2]
    before = counted[:, None, None, :].expand(rows, 1, asking, counted.shape[1])
    if mask is None:
        own = torch.ones(asking, tokens, dtype=torch.bool, device=query.device)
        mask = own.tril(tokens - asking) if causal else own
    if mask.dtype != torch.bool:
        before = torch.zeros_like(before, dtype=mask.dtype).masked_fill(~before, torch.finfo(mask.dtype).min)
    return torch.cat([before, mask.expand(rows, 1, asking, tokens)], dim=-1)


def register() -> str:
    """Register the function with transformers and return its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def has_soft_cap(config: Any) -> bool:
    """Return whether attention bounds its scores, as in Gemma 2, which torch's attention can't do.

    transformers before 5.21 chooses torch's attention for such models and silently leaves the bound out.
    """
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    return any(getattr(part, "attn_logit_softcapping", None) is not None for part in parts)


def prepare_attention_modules(base: nn.Module, among: Layers, method: str) -> dict[str, nn.Module]:
    """Make the attention modules of some blocks use this function, and return them by path.

    Args:
        base: the model.
        among: the blocks, as for `choose_blocks`.
        method: the PEFT method that needs them, for the message.

    Raises:
        ModelError: the model has no such blocks, the blocks contain no known attention, or it can't be replaced.
    """
    config: Any = base.config
    if not getattr(base, "_supports_sdpa", True) or has_soft_cap(config):
        raise ModelError(
            f"FP4019 {method} needs torch's attention, and {type(base).__name__} has its own kind of attention "
            "(with caps or distances); use lora"
        )
    config._attn_implementation = register()
    modules, alone = {}, is_single_stack(base)
    for path, block in choose_blocks(base, among, method).items():
        for name, module in block.named_modules():
            if alone and is_unused(name):
                continue
            if any(isinstance(getattr(module, k, None), nn.Module) for k in KEY_PROJECTIONS):
                modules[f"{path}.{name}"] = module
    if not modules:
        raise ModelError(f"FP4020 {method} finds no attention modules in {type(base).__name__}; use lora")
    return modules

"""Examples without padding: the real tokens of a batch in one sequence, with attention within each example.

Everything in a transformer block except attention works on single tokens, so a padded batch can be packed before the
blocks and padded again after them. Hooks on the base do it; modules and names stay as they are. The packing is passed
as an argument that transformers hands down to the attention function (`fedpeft.models.attention`).
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.models import attention
from fedpeft.models.layers import find_blocks, get_reader
from fedpeft.models.packing import STEP, Packing

WORTH = 32
"""Tokens of padding per client from which a pass is packed.

In a packed pass each client's factors need a product of their own in each adapted layer, which takes as long as about
ten tokens of a small encoder.
"""


class PackedTokens(AbstractContextManager["PackedTokens"]):
    """A context in which `base` packs padded input and returns padded hidden states.

    Attributes:
        clients: number of clients in a batch, with equally many examples each.
        packing: packing of the current or last pass; None: there was too little padding, and the pass is not packed.
    """

    packing: Packing | None = None

    def __init__(self, base: nn.Module, worth: int | None = None) -> None:
        """Register the hooks on `base`; passes are packed from `worth` tokens of padding per client on."""
        self.clients = 1
        self.worth = WORTH if worth is None else worth
        config: Any = base.config
        self._config = config
        self._usual = self._config._attn_implementation
        self._config._attn_implementation = attention.register()
        inner = get_reader(base)
        self._has_output = inner is not base
        self._names = list(inspect.signature(inner.forward).parameters)
        self._handles = [
            inner.register_forward_pre_hook(self._pack_input, with_kwargs=True),
            inner.register_forward_hook(self._pad_output, with_kwargs=True),
        ]

    def __exit__(self, *_: object) -> None:
        """Remove the hooks and restore the attention function."""
        self._config._attn_implementation = self._usual
        for handle in self._handles:
            handle.remove()

    def _pack_input(self, _: nn.Module, arguments: tuple[Any, ...], given: dict[str, Any]) -> Any:
        self.packing = None
        given = dict(zip(self._names, arguments, strict=False)) | given
        arguments = ()
        mask = given.get("attention_mask")
        if mask is None:
            return arguments, given
        packing = Packing.from_mask(mask.bool(), self.clients)
        rows, tokens = packing.shape
        if rows * tokens - packing.size < self.worth * self.clients:
            return arguments, given
        self.packing = packing
        positions = torch.arange(tokens, device=packing.places.device).expand(rows, -1)
        read = (name for name in ("input_ids", "inputs_embeds") if given.get(name) is not None)
        inputs = {name: packing.pack(given[name]) for name in read}
        seen = positions.new_ones(1, 1, 1, 1) if self._has_output else None  # or a decoder creates one of (N, N)
        named: dict[str, Any] = {"attention_mask": seen, "position_ids": packing.pack(positions), "packing": packing}
        return arguments, given | inputs | named

    def _pad_output(self, _: nn.Module, __: Any, ___: Any, output: Any) -> Any:
        if self.packing is not None:
            output["last_hidden_state"] = self.packing.pad(output["last_hidden_state"])
        return output


def can_pack_tokens(base: nn.Module) -> bool:
    """Return whether `base` computes the same on two made-up examples when they are packed.

    Only bases on CPUs are packed, and no encoders in bf16, where creating kernels for many sizes takes longer than
    padding.
    """
    parameter, config = next(base.parameters()), getattr(base, "config", None)
    kind = getattr(config, "_attn_implementation", None)
    if parameter.device.type != "cpu" or kind not in ("sdpa", attention.NAME):
        return False
    if parameter.dtype == torch.bfloat16 and get_reader(base) is base:
        return False
    if _has_attention_windows(config):  # packing lacks their masks, which two short examples would not show
        return False
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    width = int(getattr(config, "hidden_size", 0))
    hidden = torch.randn(2, 4, width, generator=torch.Generator().manual_seed(0), dtype=parameter.dtype)
    ways = ({"input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])}, {"inputs_embeds": hidden})
    return any(
        _has_same_outputs(base, {**inputs, "attention_mask": mask}) for inputs in ways
    ) and _can_exceed_positions(base)


FEW = 128
"""Number of positions up to which a model is tested with more tokens than it has positions."""


def _can_exceed_positions(base: nn.Module) -> bool:
    """Return whether packed input may have more tokens than the model has positions; CLIP's text tower may not."""
    most = int(getattr(getattr(base, "config", None), "max_position_embeddings", FEW + 1))
    if most > FEW:
        return True
    ids = torch.ones(2, most // 2 + 1, dtype=torch.long)
    return _has_same_outputs(base, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _has_attention_windows(config: Any) -> bool:
    """Return whether tokens of some layers see only nearby ones, according to the configuration."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and any(kind != "full_attention" for kind in kinds):
        return True
    windows = [getattr(config, name, None) for name in ("local_attention", "attention_window")]
    return any(windows) or (kinds is None and bool(getattr(config, "sliding_window", None)))


def _has_same_outputs(base: nn.Module, inputs: dict[str, Tensor]) -> bool:
    """Return whether all blocks attend within examples, and packed examples have the same outputs as padded ones."""
    try:
        with torch.no_grad():
            usual = _read(base, inputs)
            with PackedTokens(base, worth=-STEP) as passes:
                packed = _read(base, inputs)
        working = sum(any(True for _ in block.parameters()) for block in find_blocks(base)[1])
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, IndexError, StopIteration, ModelError):
        return False
    if passes.packing is None or passes.packing.attended < working:  # in bf16 outputs alone might not show it
        return False
    seen = inputs["attention_mask"].bool()
    near = 0.02 if usual.dtype == torch.bfloat16 else 1e-4
    return torch.allclose(packed[seen], usual[seen], rtol=near, atol=near * float(usual[seen].abs().max()))


def _read(base: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the hidden states of the reader of `base` in a run of the whole base.

    A language model passes its arguments on in its own way, so the reader is not run alone.
    """
    outputs: list[Tensor] = []
    hook = get_reader(base).register_forward_hook(lambda _, __, output: outputs.append(output.last_hidden_state))
    try:
        base(**inputs)
    finally:
        hook.remove()
    return outputs[-1]

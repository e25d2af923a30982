"""Rows without their padding: the real tokens of a batch one after another, attention row by row.

Everything in a transformer block but attention works on single tokens, so a padded batch can be packed before the
blocks and unpacked behind them. It is done in hooks on the base, whose modules and their names stay as they are; the
packing goes along as an argument that transformers hands down to the attention function (`fedpeft.models.attention`).
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
"""Tokens of padding per client, from which on a pass is packed. Each client's factors are then a product of their own,
in each adapted layer; about ten tokens of a small encoder take as long."""


class PackedTokens(AbstractContextManager["PackedTokens"]):
    """While it is open, `base` packs what it is given: padded rows go in, and padded hidden states come out.

    Attributes:
        clients: whose rows a batch holds, equally many of each.
        packing: of the pass at hand, or of the last one; None: it is as good as free of padding, and left as it is.
    """

    packing: Packing | None = None

    def __init__(self, base: nn.Module, worth: int | None = None) -> None:
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
        seen = positions.new_ones(1, 1, 1, 1) if self._has_output else None  # else a decoder makes one of (N, N)
        named: dict[str, Any] = {"attention_mask": seen, "position_ids": packing.pack(positions), "packing": packing}
        return arguments, given | inputs | named

    def _pad_output(self, _: nn.Module, __: Any, ___: Any, output: Any) -> Any:
        if self.packing is not None:
            output["last_hidden_state"] = self.packing.pad(output["last_hidden_state"])
        return output


def can_pack_tokens(base: nn.Module) -> bool:
    """Whether `base` computes the same on packed rows: tried on two.

    On CPUs alone; encoders not in bf16, where making kernels for many sizes takes longer than padding.
    """
    parameter, config = next(base.parameters()), getattr(base, "config", None)
    kind = getattr(config, "_attn_implementation", None)
    if parameter.device.type != "cpu" or kind not in ("sdpa", attention.NAME):
        return False
    if parameter.dtype == torch.bfloat16 and get_reader(base) is base:
        return False
    if _has_attention_windows(config):  # masks of their own, which packed rows have not; two short rows don't show it
        return False
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    width = int(getattr(config, "hidden_size", 0))
    hidden = torch.randn(2, 4, width, generator=torch.Generator().manual_seed(0), dtype=parameter.dtype)
    ways = ({"input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])}, {"inputs_embeds": hidden})
    return any(
        _has_same_outputs(base, {**inputs, "attention_mask": mask}) for inputs in ways
    ) and _can_exceed_positions(base)


FEW = 128
"""Positions: a model of no more is tried with more tokens than it has; one of many takes them, or is not used so."""


def _can_exceed_positions(base: nn.Module) -> bool:
    """Whether packed rows may hold more tokens than the model has positions: CLIP's texts may not."""
    most = int(getattr(getattr(base, "config", None), "max_position_embeddings", FEW + 1))
    if most > FEW:
        return True
    ids = torch.ones(2, most // 2 + 1, dtype=torch.long)
    return _has_same_outputs(base, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _has_attention_windows(config: Any) -> bool:
    """Whether tokens of some layers see those near them only, by what configurations of transformers say of it."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and any(kind != "full_attention" for kind in kinds):
        return True
    windows = [getattr(config, name, None) for name in ("local_attention", "attention_window")]
    return any(windows) or (kinds is None and bool(getattr(config, "sliding_window", None)))


def _has_same_outputs(base: nn.Module, inputs: dict[str, Tensor]) -> bool:
    """Whether all blocks attend row by row, and packed rows come out as padded ones."""
    try:
        with torch.no_grad():
            usual = _read(base, inputs)
            with PackedTokens(base, worth=-STEP) as passes:
                packed = _read(base, inputs)
        working = sum(any(True for _ in block.parameters()) for block in find_blocks(base)[1])
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, IndexError, StopIteration, ModelError):
        return False
    if passes.packing is None or passes.packing.attended < working:  # in bf16 two short rows may not show it
        return False
    seen = inputs["attention_mask"].bool()
    near = 0.02 if usual.dtype == torch.bfloat16 else 1e-4
    return torch.allclose(packed[seen], usual[seen], rtol=near, atol=near * float(usual[seen].abs().max()))


def _read(base: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What leaves the reader of `base` while all of it runs: a language model hands its arguments on in its own way."""
    found: list[Tensor] = []
    hook = get_reader(base).register_forward_hook(lambda _, __, output: found.append(output.last_hidden_state))
    try:
        base(**inputs)
    finally:
        hook.remove()
    return found[-1]

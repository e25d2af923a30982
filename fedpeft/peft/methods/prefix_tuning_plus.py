"""Prefix-Tuning+: a prefix's effect on the output of an attention head, moved out of its softmax.

    o_i = attention(q_i, k, v) + elu(q_i)^T M,   M (d, d) for each head of each adapted block, M = 0 at first

A prefix inside attention gives (1 - l) attention(q_i, k, v) + l attention(q_i, P_k, P_v). Its share l falls with the
length of the example, and it takes attention away from the example. Outside the softmax both keep their weight (Wang et
al., arXiv 2506.13674). The sum over the prefix becomes a matrix between features of the query and the output. q_i is
the query as attention reads it, with the positions of rotary embeddings.

A block has heads * d^2 numbers: 12,288 in MiniLM, as many as lora at rank 8 on queries and values. The output is linear
in M, so the plain mean of the clients' M is the mean of their effects. As for lora_fa, it is exact and a sum.

Use it if prefixes learn too little on long inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.models.attention import prepare_attention_modules
from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.layers import QUERY_PROJECTIONS, declare_layers, get_innermost
from fedpeft.models.task import FederatedModel
from fedpeft.peft.adapter import TensorSpec
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.stacked_layers import StackedLayer


class QueryMap(StackedLayer):
    """The matrices M of one block, head after head: (K, heads * d, d) for K clients, or (heads * d, d) for one."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, clients: int = 0) -> None:
        """Create zero matrices of `shape` (heads * d, d); `clients` 0 stands for one client."""
        super().__init__(max(clients, 1))
        self.M = nn.Parameter(torch.zeros((clients, *shape) if clients else shape, dtype=dtype))

    def forward(self, query: Tensor) -> Tensor:
        """Map queries (B, heads, T, d) to what is added to the output, (B, T, heads, d)."""
        rows, heads, tokens, width = query.shape
        matrices = self.M.view(-1, heads, width, width)[: self.active]
        seen = functional.elu(query.to(matrices.dtype)).view(self.active, rows // self.active, heads, tokens, width)
        return torch.einsum("kbhtd,khde->kbthe", seen, matrices).reshape(rows, tokens, heads, width)


@dataclass(frozen=True)
class PrefixTuningPlus(PeftMethod):
    """A matrix from the features of each head's query to its output."""

    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    composes: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = ("prefix_plus.M",)

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Give every attention module of the adapted blocks its matrices."""
        for module in prepare_attention_modules(model.base, self.layers, self.name).values():
            module.add_module("prefix_plus", QueryMap(_get_shape(model.base, module), get_adapter_dtype(dtype)))

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Put K clients' matrices into each attention module."""
        modules = prepare_attention_modules(model.base, self.layers, self.name)
        dtype = get_wide_dtype(next(model.base.parameters()).dtype)
        for spec in tensors:
            modules[spec.module].add_module("prefix_plus", QueryMap(spec.shape, dtype, clients))


def _get_shape(base: nn.Module, module: nn.Module) -> tuple[int, int]:
    """Return (heads * d, d) of an attention module, for the heads of queries; several of them may share a key."""
    query: Any = next((getattr(module, name) for name in QUERY_PROJECTIONS if hasattr(module, name)), None)
    config: Any = base.config
    width = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
    if query is None or not (width or getattr(config, "num_attention_heads", None)):
        raise ModelError(f"FP4066 prefix_tuning_plus finds no attention heads in {type(base).__name__}; use lora")
    inner: Any = get_innermost(query)
    return int(inner.out_features), int(width or config.hidden_size // config.num_attention_heads)


part = PrefixTuningPlus

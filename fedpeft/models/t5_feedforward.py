"""T5's feed-forward sublayers, computed through their layers alone.

The version of transformers reads the dtype of the last layer's weights. A layer with an adapter, or in few bits, does
not have the expected dtype: codes of nf4 are bytes, and hidden states would become bytes. It also keeps that layer in
fp32, since fp16 overflows there. Because bf16 has the range of fp32, here all layers have one dtype.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class DenseActDense:
    """The sublayer y = wo(act(wi(x))) of T5 1.0."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        output: Tensor = self.wo(self.dropout(self.act(self.wi(hidden_states))))
        return output


class DenseGatedActDense:
    """The sublayer y = wo(act(wi_0(x)) wi_1(x)) of T5 1.1 and its multilingual relatives."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        output: Tensor = self.wo(self.dropout(self.act(self.wi_0(hidden_states)) * self.wi_1(hidden_states)))
        return output


OWN = {own.__name__: own for own in (DenseActDense, DenseGatedActDense)}


def replace_feedforward(base: nn.Module) -> None:
    """Replace the sublayers of T5, mT5, UMT5 and LongT5 by these, in place; parameters and names stay."""
    for module in base.modules():
        kind = type(module)
        for ending, own in OWN.items():
            if kind.__name__.endswith(ending) and kind.__module__.startswith("transformers."):
                module.__class__ = type(kind.__name__, (own, kind), {})
                module.wo.to(next(module.parameters()).dtype)

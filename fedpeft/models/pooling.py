"""Mean pooling: one vector per row from the hidden states of its tokens."""

from torch import Tensor, float64


def pool(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean over the real tokens: hidden (B, T, d), mask (B, T) -> (B, d), in at least fp32."""
    hidden = hidden if hidden.dtype == float64 else hidden.float()
    if attention_mask is None:
        return hidden.mean(1)
    mask = attention_mask[..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)

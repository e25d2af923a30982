"""Losses of next tokens without ever holding the logits of all positions.

What enters the output layer is taken before it, at the positions that count, and goes through it in chunks:

    x = W h,   loss = log sum exp(x) - x[label],   d loss / d h = W^T (softmax(x) - onehot(label))

The gradient is worked out beside the loss, so that a chunk's logits are gone when the next one's are made. Memory is
that of one chunk, and positions without a label cost nothing. (Wijmans et al., arXiv 2411.09009, do so on a GPU.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedpeft.data.examples import IGNORED, Batch
from fedpeft.models.kernels import FrozenLinear
from fedpeft.models.quantized import QuantizedLinear
from fedpeft.models.task import get_wide_dtype

CHUNK = {"cpu": 2**23, "cuda": 2**27}
"""Logits that are held at once, by device: on a CPU as many as its caches about hold, and products are fast from."""

AGREEMENT = {torch.bfloat16: 0.05}
"""Largest difference, relative to the largest logit, that a model's own logits may show to those made here."""


def find_language_model(base: nn.Module) -> nn.Module | None:
    """The language model in `base`, which adapters may be wrapped around; None where there is none."""
    return next((m for m in base.modules() if hasattr(m, "get_output_embeddings") and hasattr(m, "config")), None)


@dataclass(frozen=True)
class OutputLayer:
    """The output layer of a causal language model, and what the model does to its logits.

    Attributes:
        layer: (..., d) to (..., vocabulary).
        scale: logits are multiplied by it (Cohere, Granite).
        cap: and bent to c tanh(x / c) (Gemma 2); 0: not at all.
    """

    layer: nn.Module
    scale: float = 1.0
    cap: float = 0.0

    @classmethod
    def from_base(cls, base: nn.Module) -> OutputLayer | None:
        """That of the language model in `base`, which adapters may be wrapped around; None where it has none."""
        model: Any = find_language_model(base)
        layer = model and model.get_output_embeddings()
        if not isinstance(layer, nn.Module):
            return None
        config = model.config
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
        return cls(layer, float(scale), float(getattr(config, "final_logit_softcapping", None) or 0.0))

    @property
    def plain(self) -> bool:
        """Whether it is the same for all rows, and not trained."""
        frozen = isinstance(self.layer, nn.Linear | FrozenLinear | QuantizedLinear)
        return frozen and not any(p.requires_grad for p in self.layer.parameters())

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary), in at least fp32."""
        x: Tensor = self.layer(hidden)
        if self.scale != 1.0:
            x = x * self.scale
        if self.cap:
            x = self.cap * torch.tanh(x / self.cap)
        return x if x.dtype == torch.float64 else x.float()

    def capture_input(self, read: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """What enters the layer while `read` runs the model for its logits, (B, T, d); and whether its logits at the
        first row's first position are those that `logits` makes. The layer itself computes that position only."""
        seen: list[Tensor] = []

        def one(entering: Tensor) -> Tensor:
            return entering[:1, :1].clone(memory_format=torch.contiguous_format)  # a view is multiplied 15 times slower

        def first(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(given[0])
            return (one(given[0]), *given[1:])

        hook = self.layer.register_forward_pre_hook(first)
        try:
            theirs = read()
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0].ndim != 3 or theirs.shape[:2] != (1, 1):
            return theirs, False
        with torch.no_grad():
            ours = self.compute_logits(one(seen[0]))
            off = (ours - theirs).abs().max()
            near = off <= AGREEMENT.get(seen[0].dtype, 1e-4) * ours.abs().max()
        return seen[0], bool(near)


def compute_token_losses(
    hidden: Tensor, labels: Tensor, logits_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (n,) of each of n positions, in at least fp32, and whether the label is the likeliest, (n,).

    Args:
        hidden: what enters the output layer, (n, d).
        labels: (n,), each in 0 <= label < vocabulary.
        logits_of: the output layer, (m, d) to (m, vocabulary) in at least fp32; gradients reach its input only.
    """
    losses, correct = _Losses.apply(hidden, labels, logits_of)  # type: ignore[no-untyped-call]
    return losses, correct


def sum_by_row(values: Tensor, counted: Tensor) -> Tensor:
    """Values (n,) of the positions that `counted` (B, T) marks, in its order, summed by row: (B,)."""
    places = torch.zeros(counted.shape, dtype=values.dtype, device=values.device)
    return places.masked_scatter(counted, values).sum(1)


def get_counted_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """Labels of the positions that predict one, (B, T - 1), and which of them count."""
    labels = batch["labels"][:, 1:]
    return labels, labels != IGNORED


class _Losses(torch.autograd.Function):
    """`compute_token_losses`, in chunks."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, logits_of: Any) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        losses = hidden.new_zeros(len(hidden), dtype=get_wide_dtype(hidden.dtype))
        correct = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        start, size = 0, 1
        while start < len(hidden):
            part = slice(start, start + size)
            with torch.set_grad_enabled(wanted):
                h = hidden[part].detach().requires_grad_(wanted)
                logits = logits_of(h)
            x, own = logits.detach(), labels[part, None]
            largest = x.amax(1, keepdim=True)
            chances = (x - largest).exp_()
            total = chances.sum(1, keepdim=True)
            said = x.gather(1, own)
            losses[part] = (total.log() + largest - said)[:, 0]
            if x.device.type == "cpu":
                best = (said == largest)[:, 0].nonzero()[:, 0]  # of those that are equal the first is meant
                correct[start + best] = x[best].argmax(1) == own[best, 0]
            else:  # where counting them would make the CPU wait, and looking at all costs little
                correct[part] = x.argmax(1) == own[:, 0]
            if gradient is not None:
                chances /= total
                chances.scatter_add_(1, own, chances.new_full(own.shape, -1.0))
                (gradient[part],) = torch.autograd.grad(logits, h, chances)
            start += size
            size = max(1, CHUNK.get(hidden.device.type, CHUNK["cpu"]) // x.shape[1])
            del logits, x, chances  # or the next chunk's come on top
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0][:, None].to(get_wide_dtype(gradient.dtype))).to(gradient.dtype), None, None

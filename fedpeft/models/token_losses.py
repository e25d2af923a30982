"""Losses of next tokens, computed without holding the logits of all positions.

The inputs of the output layer are captured before it. Those at counted positions pass through it in chunks:

    x = W h,   loss = log sum exp(x) - x[label],   d loss / d h = W^T (softmax(x) - onehot(label))

The gradient is computed with the loss, so that a chunk's logits are freed before the next ones are computed. Memory is
that of one chunk, and positions without a label cost nothing. Wijmans et al., arXiv 2411.09009, do the same on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedpeft.data.examples import Batch
from fedpeft.data.tagged_words import IGNORED
from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.kernels import FrozenLinear
from fedpeft.models.quantized_base import QuantizedLinear

CHUNK = {"cpu": 2**23, "cuda": 2**27}
"""Number of logits in a chunk, by device; on a CPU about as many as fit into its caches."""

AGREEMENT = {torch.bfloat16: 0.05}
"""Largest allowed difference, relative to the largest logit, between a model's own logits and those computed here."""


def find_language_model(base: nn.Module) -> nn.Module | None:
    """Return the language model in `base`, perhaps inside adapters; None if there is none."""
    return next((m for m in base.modules() if hasattr(m, "get_output_embeddings") and hasattr(m, "config")), None)


@dataclass(frozen=True)
class OutputLayer:
    """The output layer of a causal language model, and the model's changes to its logits.

    Attributes:
        layer: (..., d) to (..., vocabulary).
        scale: factor of the logits (Cohere, Granite).
        cap: c, if logits become c tanh(x / c) (Gemma 2); 0: they do not.
    """

    layer: nn.Module
    scale: float = 1.0
    cap: float = 0.0

    @classmethod
    def from_base(cls, base: nn.Module) -> OutputLayer | None:
        """Find the output layer of the language model in `base`, perhaps inside adapters; None if there is none."""
        model: Any = find_language_model(base)
        layer = model and model.get_output_embeddings()
        if not isinstance(layer, nn.Module):
            return None
        config = model.config
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
        return cls(layer, float(scale), float(getattr(config, "final_logit_softcapping", None) or 0.0))

    @property
    def plain(self) -> bool:
        """Whether the layer is a frozen linear one that all examples share."""
        frozen = isinstance(self.layer, nn.Linear | FrozenLinear | QuantizedLinear)
        return frozen and not any(p.requires_grad for p in self.layer.parameters())

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Compute logits (..., vocabulary), in at least fp32."""
        x: Tensor = self.layer(hidden)
        if self.scale != 1.0:
            x = x * self.scale
        if self.cap:
            x = self.cap * torch.tanh(x / self.cap)
        return x if x.dtype == torch.float64 else x.float()

    def capture_input(self, read: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """Capture the layer's input while `read` runs the model for its logits.

        The layer itself computes only the first example's first position.

        Returns:
            The input (B, T, d), and whether the model's logits at that position equal those of `compute_logits`. If
                not, the
            first part may be something else.
        """
        seen: list[Tensor] = []

        def take_first(states: Tensor) -> Tensor:
            return states[:1, :1].clone(memory_format=torch.contiguous_format)  # a view is multiplied 15 times slower

        def capture(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(given[0])
            return (take_first(given[0]), *given[1:])

        hook = self.layer.register_forward_pre_hook(capture)
        try:
            theirs = read()
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0].ndim != 3 or theirs.shape[:2] != (1, 1):
            return theirs, False
        with torch.no_grad():
            ours = self.compute_logits(take_first(seen[0]))
            off = (ours - theirs).abs().max()
            near = off <= AGREEMENT.get(seen[0].dtype, 1e-4) * ours.abs().max()
        return seen[0], bool(near)


def compute_token_losses(
    hidden: Tensor, labels: Tensor, logits_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy (n,) of n positions, in at least fp32, and whether each label is the likeliest, (n,).

    Args:
        hidden: inputs of the output layer, (n, d).
        labels: (n,), each in 0 <= label < vocabulary.
        logits_of: the output layer, (m, d) to (m, vocabulary) in at least fp32; gradients reach only its input.
    """
    losses, correct = _Losses.apply(hidden, labels, logits_of)  # type: ignore[no-untyped-call]
    return losses, correct


@torch.no_grad()
def find_likeliest(hidden: Tensor, log_shares: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the likeliest token at n positions, (n,), if several copies of each are mixed with weights.

    Args:
        hidden: inputs of the output layer, (n, copies, d).
        log_shares: logarithms of the copies' weights, (copies,).
        logits_of: the output layer, as for `compute_token_losses`.
    """
    likeliest = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    start, size = 0, 1
    while start < len(hidden):
        part = hidden[start : start + size]
        logits = logits_of(part.flatten(0, 1)).view(*part.shape[:2], -1)
        mixed = (logits.log_softmax(-1) + log_shares.to(logits)[:, None]).logsumexp(1)
        likeliest[start : start + size] = mixed.argmax(-1)
        start += size
        size = max(1, CHUNK.get(hidden.device.type, CHUNK["cpu"]) // logits[0].numel())
    return likeliest


def sum_by_row(values: Tensor, counted: Tensor) -> Tensor:
    """Sum values (n,) of the positions that `counted` (B, T) marks, in its order, by row: (B,)."""
    places = torch.zeros(counted.shape, dtype=values.dtype, device=values.device)
    return places.masked_scatter(counted, values).sum(1)


def get_counted_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the labels of the predicting positions, (B, T - 1), and which of them count."""
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
            x, label = logits.detach(), labels[part, None]
            largest = x.amax(1, keepdim=True)
            chances = (x - largest).exp_()
            total = chances.sum(1, keepdim=True)
            target = x.gather(1, label)
            losses[part] = (total.log() + largest - target)[:, 0]
            if x.device.type == "cpu":
                best = (target == largest)[:, 0].nonzero()[:, 0]  # argmax decides between equal logits: the first wins
                correct[start + best] = x[best].argmax(1) == label[best, 0]
            else:  # on a GPU nonzero() would make the CPU wait, and argmax of all rows is cheap
                correct[part] = x.argmax(1) == label[:, 0]
            if gradient is not None:
                chances /= total
                chances.scatter_add_(1, label, chances.new_full(label.shape, -1.0))
                (gradient[part],) = torch.autograd.grad(logits, h, chances)
            start += size
            size = max(1, CHUNK.get(hidden.device.type, CHUNK["cpu"]) // x.shape[1])
            del logits, x, chances  # free them before the next chunk
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0][:, None].to(get_wide_dtype(gradient.dtype))).to(gradient.dtype), None, None

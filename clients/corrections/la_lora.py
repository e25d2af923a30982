"""LA-LoRA: the two factors take turns within a round, and their gradients are smoothed.

Source: Liu, Miao, Xi, Liu, ICLR 2026, arXiv 2602.19926.

    odd local steps:   B moves, A stands still;      even steps:  A moves, B stands still;     the head always moves
    g <- w * g,  w = [1, 4, 6, 4, 1] / 16, along the features (of B: out, of A: in)

If both factors move in one step under differential privacy, the noise of one multiplies that of the other. Here a step
clips, noises and moves one. Smoothing comes after the noise, so it costs no privacy. Neighboring features share the
signal, and their noise averages out. B goes first, since it starts at 0 and A has no gradient then.

Deviations: at its ends a row is continued by its last value. The paper's optional scaling of B's gradient by (A A^T)^-1
is left out. No extra state travels. With AdamW a factor's moments wait while it stands still.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from fedpeft.clients.drift import Correction
from torch import Tensor
from torch.nn.functional import conv1d, pad

from fedpeft.parts import setting

A, B = ".lora_A.weight", ".lora_B.weight"
KERNEL = (1.0, 4.0, 6.0, 4.0, 1.0)


@dataclass(frozen=True)
class LALoRA(Correction):
    """Alternating local steps on smoothed gradients."""

    smooth: bool = setting(True, "smooth gradients along the features, after any noise")

    needs: ClassVar[tuple[str, ...]] = (A, B)

    def moves(self, name: str, step: int) -> bool:
        """Return whether a tensor moves: B in even steps (from 0), A in odd ones, all others always."""
        return not name.endswith(A if step % 2 == 0 else B)

    def direction(self, name: str, gradient: Tensor) -> Tensor | None:
        """Return a factor's smoothed gradient; None for other tensors and without smoothing."""
        if not self.smooth or not name.endswith((A, B)):
            return None
        return smooth_rows(gradient) if name.endswith(A) else smooth_rows(gradient.T).T

    def noise_left(self, name: str) -> float:
        """Return the share of the noise variance that smoothing leaves: sum w^2 for a factor, 1 for other tensors."""
        smooths = self.smooth and name.endswith((A, B))
        return sum(weight**2 for weight in KERNEL) / sum(KERNEL) ** 2 if smooths else 1.0


def smooth_rows(rows: Tensor) -> Tensor:
    """Convolve each row of (r, n) with the kernel."""
    kernel = torch.tensor([[KERNEL]], dtype=rows.dtype, device=rows.device) / sum(KERNEL)
    return conv1d(pad(rows[:, None], (2, 2), mode="replicate"), kernel)[:, 0]


part = LALoRA

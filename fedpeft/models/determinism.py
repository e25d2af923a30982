"""The same bits again on a GPU, so that a resumed run ends as one that was never interrupted.

What has no deterministic form warns, instead of ending a run. torch's fused attention has one, whose gradients do not
depend on the order in which blocks finish, but takes it only where nothing warns: so that is asked for while its
gradients are computed, and for nothing else.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

FUSED = "ScaledDotProduct"
"""What the names of fused attention's gradients begin with."""

STEPS = 4
"""Between the attention's output and the fused operation there are at most so many others (transpose, copy)."""


def compute_deterministically() -> None:
    """From here on, in this process. cuDNN's attention has no deterministic form, and is not taken."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)


def warn_again() -> None:
    """After a backward pass that has failed, perhaps in fused attention: what was asked for there was not undone."""
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(True, warn_only=True)


def make_attention_deterministic(output: Tensor) -> None:
    """Let the gradients of the fused attention that `output` comes from be deterministic, if this process computes so;
    nothing where there is none, or no gradient."""
    node: Any = output.grad_fn
    before: list[bool] = []
    for _ in range(STEPS):
        if node is None:
            return
        if node.name().startswith(FUSED):
            node.register_prehook(lambda _: _enable_determinism(before))
            node.register_hook(lambda *_: _restore_determinism(before))
            return
        node = node.next_functions[0][0] if node.next_functions else None


def _enable_determinism(before: list[bool]) -> None:
    if torch.are_deterministic_algorithms_enabled():
        before.append(torch.is_deterministic_algorithms_warn_only_enabled())
        torch.use_deterministic_algorithms(True, warn_only=False)


def _restore_determinism(before: list[bool]) -> None:
    if before:
        torch.use_deterministic_algorithms(True, warn_only=before.pop())

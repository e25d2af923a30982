"""Deterministic computation on a GPU, so that a resumed run ends like one that was never interrupted.

An operation without a deterministic form causes a warning instead of ending a run. torch's fused attention has a
deterministic form, whose gradients do not depend on the order in which blocks finish. But torch uses it only if
operations without one are errors. So this strict mode is on only while the gradients of fused attention are computed.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

FUSED = "ScaledDotProduct"
"""Prefix of the names of fused attention's gradients."""

STEPS = 4
"""Largest number of operations (transpose, copy) from the attention's output back to the fused operation."""


def compute_deterministically() -> None:
    """Make this process compute deterministically. cuDNN's attention is off, because it has no deterministic form."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)


def restore_warnings() -> None:
    """Restore warnings after a failed backward pass, which may have left fused attention's strict mode on."""
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(True, warn_only=True)


def make_attention_deterministic(output: Tensor) -> None:
    """Make the gradients of the fused attention behind `output` deterministic if this process computes so.

    Nothing happens without fused attention or without gradients.
    """
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

"""Gradient checkpointing: a transformer block keeps only its input and is computed again in the backward pass.

Activation memory falls to that of one block and the inputs of all, for about a third more time. Chen et al. (arXiv
1604.06174) keep one input per segment of several blocks, so that memory grows with the root of their number.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedpeft.models.layers import choose_blocks


def checkpoint_blocks(base: nn.Module) -> None:
    """Let each transformer block of `base` keep only its input, in place; adapters may be put into it later.

    The second computation must equal the first, so random choices inside blocks go through `remember`.
    """
    for block in choose_blocks(base, 0).values():
        block.forward = _wrap_forward(block.forward)


T = TypeVar("T")

_now = threading.local()


def remember(owner: object, draw: Callable[[], T]) -> T:
    """Return `draw()`; when a block is computed again, return what it drew in the first computation of that pass.

    Passes may be computed again in any order and any number of times.
    """
    kept: dict[int, Any] | None = getattr(_now, "kept", None)
    if kept is None:
        return draw()
    if _now.again:
        before: T = copy.deepcopy(kept[id(owner)])
        return before
    drawn = draw()
    kept[id(owner)] = copy.deepcopy(drawn)
    return drawn


class _Pass(AbstractContextManager[None]):
    """The context of one computation of a block; a context that looks draws up may be entered several times."""

    def __init__(self, kept: dict[int, Any], again: bool) -> None:
        """Hold the draws of the pass.

        Args:
            kept: what was drawn, by layer.
            again: whether draws are looked up instead of made.
        """
        self._kept, self._again = kept, again

    def __enter__(self) -> None:
        self._before = getattr(_now, "kept", None), getattr(_now, "again", False)
        _now.kept, _now.again = self._kept, self._again

    def __exit__(self, *_: object) -> None:
        _now.kept, _now.again = self._before


def _wrap_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        kept: dict[int, Any] = {}
        return checkpoint(
            forward,
            *given,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (_Pass(kept, again=False), _Pass(kept, again=True)),
            **named,
        )

    return run

"""The states of an encoder that a head reads: the last hidden states, or those of all blocks, concatenated.

Blocks lose information of the blocks below. A linear head on all of them can be far better than one on the last, and it
learns which it needs (Evci et al., Head2Toe, arXiv 2201.03529). Every state is normalized to length 1, since lengths
differ much between blocks.
"""

from __future__ import annotations

import copy
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.models.layers import count_layers, find_blocks

ALL_BLOCKS = "all blocks"
"""What a head reads with `read_all_blocks` (`PeftMethod.reads`)."""


class AllBlocks:
    """A mixin before an encoder's class whose last hidden states are those of all blocks, (B, T, (blocks + 1) * d)."""


def get_width(base: nn.Module) -> int:
    """Return the number of features that a head reads per token: d, or (blocks + 1) * d for all blocks.

    Raises:
        ModelError: its config.json has no hidden_size.
    """
    width = getattr(base.config, "hidden_size", None)
    if not isinstance(width, int):
        raise ModelError(
            f"FP4038 the config.json of {type(base).__name__} lacks hidden_size, the model's width; add it"
        )
    return width * (len(find_blocks(base)[1]) + 1) if isinstance(base, AllBlocks) else width


def read_all_blocks(base: nn.Module) -> None:
    """Make `base` return the input of its first block and the output of each block, concatenated, in place.

    Its modules and their names stay.

    Raises:
        ModelError: an example does not pass each block once.
    """
    if isinstance(base, AllBlocks):
        return
    if count_layers(base) != len(find_blocks(base)[1]):
        raise ModelError(
            f"FP4039 {type(base).__name__} passes its blocks several times, and head2toe reads each once; use "
            "linear_probe"
        )
    kind: Any = type(base)

    @wraps(kind.forward)
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        stack, states = find_blocks(self)[1], list[Tensor]()

        def capture_input(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            states.append(given[0] if given else named["hidden_states"])

        def capture_output(_: nn.Module, __: Any, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        handles: list[Any] = [stack[0].register_forward_pre_hook(capture_input, with_kwargs=True)]
        handles += [block.register_forward_hook(capture_output) for block in list(stack)[:-1]]
        try:
            output = kind.forward(self, *arguments, **named)
        finally:
            for handle in handles:
                handle.remove()
        last = output["last_hidden_state"]
        if len(states) != len(stack) or any(state.shape != last.shape for state in states):
            raise ModelError(
                f"FP4040 the blocks of {kind.__name__} do not pass on states of one shape, which head2toe "
                "reads; use linear_probe"
            )
        output["last_hidden_state"] = concatenate_states([*(state.to(last.device) for state in states), last])
        return output

    base.__class__ = type(kind.__name__, (AllBlocks, kind), {"__module__": kind.__module__, "forward": forward})


def concatenate_states(states: list[Tensor]) -> Tensor:
    """Normalize states of one shape (..., d) to length 1 and concatenate them to (..., len(states) * d)."""
    return torch.cat([functional.normalize(state, dim=-1) for state in states], dim=-1)


def get_plain_base(base: nn.Module) -> nn.Module:
    """Return `base` as a model that returns only its last hidden states; it shares its modules with `base`."""
    if not isinstance(base, AllBlocks):
        return base
    plain = copy.copy(base)
    plain.__class__ = type(base).__mro__[2]
    return plain

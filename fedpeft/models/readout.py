"""What a head reads of an encoder: its last hidden states, or those of all blocks beside one another.

Blocks forget what the ones below knew: a linear head on all of them can be far above one on the last, and finds out by
itself which it needs (Evci et al., Head2Toe, arXiv 2201.03529). Every state is brought to length 1, since their sizes
differ by far from block to block.
"""

from __future__ import annotations

import copy
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.models.layers import count_layers, find_blocks


class AllBlocks:
    """Before the class of an encoder: its last hidden states are those of all blocks, (B, T, (blocks + 1) * d)."""


def get_width(base: nn.Module) -> int:
    """How many numbers a head reads of each token: d, or of all blocks and what enters them (blocks + 1) * d.

    Raises:
        ModelError: its config.json does not say.
    """
    said = getattr(base.config, "hidden_size", None)
    if not isinstance(said, int):
        raise ModelError(
            f"FP4038 the config.json of {type(base).__name__} lacks hidden_size, how wide vectors are; add it"
        )
    return said * (len(find_blocks(base)[1]) + 1) if isinstance(base, AllBlocks) else said


def read_all_blocks(base: nn.Module) -> None:
    """Let `base`, in place, give what enters its first block and leaves each, instead of the last alone; its modules
    and their names stay.

    Raises:
        ModelError: its blocks are not passed once each.
    """
    if isinstance(base, AllBlocks):
        return
    if count_layers(base) != len(find_blocks(base)[1]):
        raise ModelError(f"FP4039 {type(base).__name__} passes its blocks several times, and head2toe reads each once")
    kind: Any = type(base)

    @wraps(kind.forward)
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        stack, states = find_blocks(self)[1], list[Tensor]()

        def entering(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            states.append(given[0] if given else named["hidden_states"])

        def leaving(_: nn.Module, __: Any, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        handles: list[Any] = [stack[0].register_forward_pre_hook(entering, with_kwargs=True)]
        handles += [block.register_forward_hook(leaving) for block in list(stack)[:-1]]
        try:
            output = kind.forward(self, *arguments, **named)
        finally:
            for handle in handles:
                handle.remove()
        last = output["last_hidden_state"]
        if len(states) != len(stack) or any(state.shape != last.shape for state in states):
            raise ModelError(
                f"FP4040 the blocks of {kind.__name__} do not pass states of one shape from one to the next, and "
                "head2toe reads what each leaves; take linear_probe"
            )
        output["last_hidden_state"] = concatenate_states([*(state.to(last.device) for state in states), last])
        return output

    base.__class__ = type(kind.__name__, (AllBlocks, kind), {"__module__": kind.__module__, "forward": forward})


def concatenate_states(states: list[Tensor]) -> Tensor:
    """States of one shape (..., d), each brought to length 1, as (..., len(states) * d)."""
    return torch.cat([F.normalize(state, dim=-1) for state in states], dim=-1)


def get_plain_base(base: nn.Module) -> nn.Module:
    """`base` as one that gives its last hidden states; it stays as it is, and shares its modules."""
    if not isinstance(base, AllBlocks):
        return base
    made = copy.copy(base)
    made.__class__ = type(base).__mro__[2]
    return made

"""A model on several devices, for a base that does not fit on one: its blocks in order, all else on the first.

Each block's input is moved to its device. The last block's output returns to the first device, where embeddings and
output layer are, which often share their weights. Devices work one after another, as with transformers' `device_map`:
that saves memory, not time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedpeft.errors import ModelError
from fedpeft.models.layers import find_blocks


def assign_devices(sizes: Sequence[int], devices: int) -> list[int]:
    """Assign a device to each block, in order, so that each device has about as many bytes.

    Args:
        sizes: bytes of each block.
        devices: number of devices, at least one and at most the number of blocks.
    """
    total, before, places = sum(sizes), 0, list[int]()
    for i, size in enumerate(sizes):
        middle = (before + size / 2) / total
        wanted = min(devices - 1, int(middle * devices))
        left = len(sizes) - i  # each device gets a block
        places.append(max(min(wanted, (places[-1] if places else -1) + 1), devices - left))
        before += size
    return places


def spread_model(model: nn.Module, devices: Sequence[str]) -> None:
    """Move a model, with its adapter, to `devices`.

    Raises:
        ModelError: it has fewer blocks than there are devices.
    """
    stack = find_blocks(model)[1]
    if len(stack) < len(devices):
        raise ModelError(
            f"FP4042 a model of {len(stack)} blocks can't be spread over {len(devices)} devices; give at most "
            f"{len(stack)}"
        )
    sizes = [sum(p.numel() * p.element_size() for p in block.parameters()) for block in stack]
    places = [torch.device(devices[share]) for share in assign_devices(sizes, len(devices))]
    inside = {id(module) for block in stack for module in block.modules()}
    for module in model.modules():
        if id(module) not in inside:
            module._apply(_create_mover(torch.device(devices[0])), recurse=False)  # type: ignore[no-untyped-call]
    for block, place in zip(stack, places, strict=True):
        block.to(place)
        block.register_forward_pre_hook(_create_input_hook(place), with_kwargs=True)
    stack[-1].register_forward_hook(_create_output_hook(torch.device(devices[0])))


def _create_mover(device: torch.device) -> Callable[[Tensor], Tensor]:
    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    return move


def _create_input_hook(device: torch.device) -> Any:
    def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return _move_values(given, device), _move_values(named, device)

    return hook


def _create_output_hook(device: torch.device) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return _move_values(output, device)

    return hook


def _move_values(values: Any, device: torch.device) -> Any:
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)

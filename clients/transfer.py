"""Copies of tensors between the CPU and another device: few of them, which do not block on a GPU.

A copy from or to a GPU costs about ten microseconds beside its bytes, and one from ordinary memory makes the CPU wait.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def move_tensor(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device; computations there wait for the copy, the CPU does not."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def put(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy CPU tensors into tensors of the same shapes; autograd must be off."""
    for own in _group_by_device(targets):
        _put([targets[i] for i in own], [values[i] for i in own])


def _group_by_device(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the indices of the tensors on each device; a base on several devices gives several groups."""
    found: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        found.setdefault(tensor.device, []).append(i)
    return list(found.values())


def _put(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    if not targets or targets[0].device.type == "cpu":
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
        return
    for dtype in dict.fromkeys(value.dtype for value in values):
        pairs = [(t, v) for t, v in zip(targets, values, strict=True) if v.dtype == dtype]
        flat = move_tensor(torch.cat([value.reshape(-1) for _, value in pairs]), targets[0].device)
        for (target, value), part in zip(pairs, torch.split(flat, [v.numel() for _, v in pairs]), strict=True):
            target.copy_(part.view(value.shape))


def copy_to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the CPU, each with its own memory; from another device in one copy for each dtype."""
    found: dict[int, Tensor] = {}
    for own in _group_by_device(tensors):
        found |= zip(own, _copy_from_device([tensors[i] for i in own]), strict=True)
    return [found[i] for i in range(len(tensors))]


def _copy_from_device(tensors: Sequence[Tensor]) -> list[Tensor]:
    if not tensors or tensors[0].device.type == "cpu":
        return [tensor.detach().clone() for tensor in tensors]
    found: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        own = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flat = torch.cat([tensors[i].detach().reshape(-1) for i in own]).cpu()
        parts = torch.split(flat, [tensors[i].numel() for i in own])
        found |= {i: part.view(tensors[i].shape).clone() for i, part in zip(own, parts, strict=True)}
    return [found[i] for i in range(len(tensors))]

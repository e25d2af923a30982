"""Slopes along random directions from two losses, for local optimizers that need no backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedpeft.communication.codecs.scalars import direction
from fedpeft.machine import seeds
from fedpeft.peft.adapter import Layout, State

if TYPE_CHECKING:
    from fedpeft.clients.executor import Job


def directions(job: Job, layout: Layout, step: int) -> State:
    """Return the direction of a job's `step`, from 0, for each tensor that it trains, in the client's shapes.

    They are those of the codec `scalars`: its payload has the seed of the client's round, and tensors sorted by name.
    Tensors that stay with the client come last, because the payload does not have them.
    """
    trained = job.trained & set(layout.names)
    names = [*sorted(trained - job.private), *sorted(trained & job.private)]
    sizes = [job.received[name].numel() for name in names]
    seed = seeds.derive_seed(job.seed, "codec", job.round, job.client)
    signs = torch.from_numpy(direction(seed, step, sum(sizes)))
    parts = torch.split(signs, sizes)
    return {n: part.view_as(job.received[n]).to(job.received[n]) for n, part in zip(names, parts, strict=True)}


@torch.no_grad()
def probe(
    parameters: Mapping[str, nn.Parameter], along: State, distance: float, losses: Callable[[], Tensor]
) -> Tensor:
    """Set the gradients of `parameters` to slope times direction, and return the mean of the two losses.

    Args:
        parameters: of one client, or stacked for K clients, (K, ...).
        along: the directions, in the parameters' shapes.
        distance: of each of the two points.
        losses: computes the loss of the batch, (), or of each client's own, (K,), at the parameters' present values.
    """
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    found = []
    for sign in (1, -1):
        for name, parameter in parameters.items():
            parameter.copy_(start[name] + sign * distance * along[name])
        found.append(losses())
    slope = (found[0] - found[1]) / (2 * distance)
    for name, parameter in parameters.items():
        parameter.copy_(start[name])
        own = slope.view(-1, *[1] * (parameter.ndim - 1)) if slope.ndim else slope
        parameter.grad = (own * along[name]).to(parameter.dtype)
    return (found[0] + found[1]) / 2

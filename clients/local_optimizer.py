"""The optimizer of a client's local steps, and its learning rate: over the tensors, a round's steps, and the rounds.

--optimizer "adamw(warmup=8, head_rate=0.1, schedule=linear)"
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fedpeft.errors import ConfigError
from fedpeft.parts import name_of, setting

Variance = Callable[[str], float]
"""Returns the noise variance in each entry of a parameter's gradient, given its canonical name."""


def get_zero_variance(name: str) -> float:
    """Return 0, the noise variance of a tensor's gradient without noise."""
    return 0.0


@dataclass(frozen=True, kw_only=True)
class LocalOptimizer(ABC):
    """One optimizer. Subclasses are frozen dataclasses; their fields are the user's settings."""

    warmup: int = setting(
        0,
        "steps over which a round's learning rate rises; AdamW's moments are empty when a round begins",
        low=0,
    )
    max_norm: float = setting(0.0, "clip the gradient of a step to this norm; 0: no clipping", low=0)
    rows_per_pass: int = setting(0, "examples per pass of a step; fewer need less memory; 0: all in one pass", low=0)
    checkpointing: bool = setting(False, "recompute blocks in the backward pass: less memory, a third more time")
    head_rate: float = setting(0.1, "learning rate of the head, relative to the adapter's; 0 keeps it", low=0)
    schedule: str = setting(
        "linear",
        "learning rate over rounds; annealing: a cosine that reaches its floor in the last round",
        choices=("constant", "linear", "cosine", "annealing"),
    )
    floor: float = setting(0.0, "share of the learning rate that a schedule ends at", low=0, high=1)

    plain: ClassVar[bool] = False
    """Whether a step is the gradient times the learning rate, so that the gradient can be read off it."""

    @abstractmethod
    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return a new optimizer of torch over groups of parameters, each with its `lr`."""

    def prepare(  # noqa: B027
        self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], variance: Variance
    ) -> None:
        """Give a new optimizer what its steps depend on beside gradients; by default nothing.

        Args:
            optimizer: the result of `over`.
            parameters: its parameters by canonical name.
            variance: noise variance in each entry of a parameter's gradient, by the parameter's name.

        Raises:
            ConfigError: it can't step any of the parameters.
        """

    def create_optimizer(
        self,
        parameters: Mapping[str, nn.Parameter],
        learning_rate: float,
        variance: Variance = get_zero_variance,
    ) -> tuple[Any, LambdaLR]:
        """Return a new optimizer over parameters by canonical name, and its warm-up; their state ends with the round.

        Raises:
            ConfigError: its steps ask for the loss again, or it can't step any of the parameters.
        """
        head = [p for name, p in parameters.items() if name.startswith("head.")]
        adapter = [p for name, p in parameters.items() if not name.startswith("head.")]
        groups = [
            {"params": group, "lr": rate}
            for group, rate in ((adapter, learning_rate), (head, learning_rate * self.head_rate))
            if group
        ]
        optimizer = self.over(groups)
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ConfigError(
                f"FP1008 the local optimizer {name_of(type(self))} makes a {type(optimizer).__name__}, which "
                "computes the loss several times per step; choose an optimizer that needs no closure, since a "
                "step here has one gradient"
            )
        self.prepare(optimizer, parameters, variance)
        return optimizer, LambdaLR(optimizer, self.share)

    def rate(self, name: str, learning_rate: float) -> float:
        """Return the learning rate of one tensor."""
        return learning_rate * self.head_rate if name.startswith("head.") else learning_rate

    def share(self, step: int) -> float:
        """Return the share of the learning rate that a round's `step`, from 0, uses."""
        return min(1.0, (step + 1) / (self.warmup + 1))

    def count_full_steps(self, steps: int) -> float:
        """Return how many steps at the full rate a round's first `steps` are worth: fewer under warm-up."""
        return sum(self.share(step) for step in range(steps))


@runtime_checkable
class MovesIdleEntries(Protocol):
    """A step can also move entries whose gradient is zero."""

    def moves_idle_entries(self) -> bool:
        """Return whether it does, with the optimizer's settings."""


@runtime_checkable
class CarriesMomentum(Protocol):
    """Steps use a momentum, in the unit of a gradient, that corrections can set before a round and read after it.

    M <- b M + (1 - b) g, so a constant added to M and to all gradients of a round stays added to M.
    """

    @abstractmethod
    def write_momentum(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, momentum: Tensor) -> None:
        """Set the momentum of a parameter, in its shape, before the first step."""

    @abstractmethod
    def read_momentum(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Tensor:
        """Return the momentum of a parameter, in its shape."""


@runtime_checkable
class ProbesLosses(Protocol):
    """A step uses the losses at two points instead of a gradient."""

    def get_probe_distance(self) -> float:
        """Return the distance of the two points from the parameters, in each entry, above 0."""

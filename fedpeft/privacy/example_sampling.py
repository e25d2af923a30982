"""The sampling of a client's examples for its local steps, if a mechanism clips the gradient of each example."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExampleSampling:
    """Poisson sampling: each example joins a step by a secret coin of its own.

    Attributes:
        rate: the probability for all clients alike, above 0, at most 1. All clients then divide by the batch size,
            which is the expected number of examples in a step of a client of mean size. None: each client has its own
            rate, and divides by its own expected number of examples.
    """

    rate: float | None = None

    @property
    def divides_alike(self) -> bool:
        """Whether all clients divide by the run's batch size, so that none may have another."""
        return self.rate is not None

    def rate_of(self, batch_size: int, examples: int) -> float:
        """Return the probability with which each of a client's examples joins a step of about `batch_size`."""
        return min(1.0, batch_size / examples) if self.rate is None else self.rate

    def divisor(self, batch_size: int, examples: int) -> float:
        """Return what the sum of a client's step is divided by."""
        return self.rate_of(batch_size, examples) * examples if self.rate is None else float(batch_size)

"""Banded matrix factorization: the noise of a round partly cancels that of earlier rounds, so sums have less noise.

Source: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization", NeurIPS 2023, arXiv 2306.08153.

    F lower triangular with `bands` diagonals and columns of norm 1;   error = |A F^-1|_F,  A = lower triangle of ones

The model after t rounds is a sum of t releases, so its noise is A F^-1 w. The mean square of that noise over rounds is
the square of `error` over the number of rounds. L-BFGS finds the F that minimizes it. Clients take turns in known
cohorts, `separation` rounds apart (b-min-separation). Columns that far apart share no row if `bands` is at most
`separation`, so they are orthogonal. No secret sampling is needed, and none amplifies.

Deviation: with more than `WIDEST` rounds F is a banded Toeplitz matrix with normalized columns. Its few numbers are
found quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from fedpeft.errors import PrivacyError
from fedpeft.parts import setting
from fedpeft.privacy.server_noise import ServerNoise

WIDEST = 128
"""The most rounds for which F has free entries in each column."""

STEPS = 60
"""The most steps of L-BFGS; more of them change the error by less than 0.1 %."""


@dataclass(frozen=True)
class Banded(ServerNoise):
    """Noise that partly cancels the noise of earlier rounds."""

    bands: int = setting(
        0, "diagonals of the factor, at most the rounds between a client's turns; 0: that number", low=0
    )

    turns: ClassVar[bool] = True

    def check(self, separation: int) -> None:
        """Reject more bands than there are rounds between two turns of a client.

        Raises:
            PrivacyError: the message contains the largest legal number of bands.
        """
        if separation < 2:
            raise PrivacyError(
                "FP7082 noise=banded needs rounds between a client's turns, but a cohort of more than half of "
                "the clients returns in the next round; choose a smaller --cohort, or leave noise out"
            )
        if self.bands > separation:
            raise PrivacyError(
                f"FP7083 bands={self.bands} needs clients that return after {self.bands} rounds at the "
                f"earliest, but they return after {separation}; use bands={separation} at most, or a smaller "
                "--cohort"
            )

    def factor(self, rounds: int, separation: int) -> np.ndarray:
        """Return F (rounds, rounds)."""
        return optimize_factor(rounds, min(self.bands or separation, rounds))


@lru_cache(maxsize=16)
def optimize_factor(rounds: int, bands: int) -> np.ndarray:
    """Compute the F with `bands` diagonals (1 to `rounds`), columns of norm 1, and the smallest error.

    The search starts at the first coefficients of the square root of A (Fichtenberger et al., arXiv 2202.11205).
    """
    root = torch.cumprod(torch.tensor([1.0] + [1 - 0.5 / i for i in range(1, bands)], dtype=torch.float64), 0)
    own = rounds <= WIDEST
    shape = (rounds, bands - 1) if own else (bands - 1,)
    free = root[1:].expand(shape).numpy().ravel()

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        given = torch.tensor(values, requires_grad=True)
        value = compute_error(_factor(given.view(shape), rounds)).square() / rounds
        [gradient] = torch.autograd.grad(value, [given])
        return float(value.detach()), gradient.numpy()

    if bands > 1:
        free = minimize(loss, free, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x
    found = _factor(torch.from_numpy(free).view(shape), rounds).numpy()
    found.setflags(write=False)
    return np.asarray(found)


def compute_error(factor: Tensor) -> Tensor:
    """Compute |A F^-1|_F, the error that `factor` F leaves in sums of rounds."""
    ones = torch.ones_like(factor).tril()
    noise: Tensor = torch.linalg.solve_triangular(factor, ones, upper=False, left=False)
    return noise.square().sum().sqrt()


def _factor(free: Tensor, rounds: int) -> Tensor:
    """Return F, with 1 on its diagonal and `free` below it, then with normalized columns.

    Args:
        free: (rounds, bands - 1), or (bands - 1,) for the same entries in all columns.
        rounds: rows and columns of F.
    """
    below = free.expand(rounds, free.shape[-1])
    columns = torch.cat([below.new_ones(rounds, 1), below], 1)
    lines = torch.arange(rounds)[:, None] + torch.arange(columns.shape[1])
    inside = lines < rounds
    columns = columns * inside
    columns = columns / columns.norm(dim=1, keepdim=True)
    places = torch.arange(rounds)[:, None].expand_as(lines)
    empty: Tensor = columns.new_zeros(rounds, rounds)
    return empty.index_put((lines[inside], places[inside]), columns[inside])


part = Banded

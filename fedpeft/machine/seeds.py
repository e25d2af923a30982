"""Random generators: every draw has its own, derived from the run's seed, a purpose and ids.

So a client's batches depend on (seed, round, client) alone: not on which other clients were trained before, in which
process, or whether the run was resumed. Never `torch.manual_seed`: a shared stream would give every client the same
draws. Noise for privacy does not come from here (see `fedpeft.privacy`).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

ROUTES = "routes"
"""Name of the random stream of a layer's random choices; it is drawn anew for each seed, round, client and step."""


def _create_sequence(seed: int, purpose: str, ids: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *ids])


def create_generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """Return a numpy generator for (seed, purpose, ids); seed and ids are integers of at least 0."""
    return np.random.default_rng(_create_sequence(seed, purpose, ids))


def create_torch_generator(seed: int, purpose: str, *ids: int) -> torch.Generator:
    """Return a torch CPU generator for (seed, purpose, ids)."""
    import torch  # only here: what is drawn with numpy alone needs no torch

    return torch.Generator().manual_seed(derive_seed(seed, purpose, *ids))


def derive_seed(seed: int, purpose: str, *ids: int) -> int:
    """Return a derived 63-bit seed, for libraries that take one."""
    return int(_create_sequence(seed, purpose, ids).generate_state(1, np.uint64)[0] >> np.uint64(1))

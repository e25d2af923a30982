"""The run's secret key, from which privacy noise and Poisson draws come.

Whoever knows the key can subtract the noise. So it is a file of mode 0600 that is never exported, and none of its
derived numbers is ever written down. Every draw has its own stream, derived by HMAC-SHA256 from the secret, a purpose
and ids.

The streams are numpy's Philox with a key of 128 bits. Torch's generators keep only the lowest 32 bits of a seed: among
100,000 (client, round) pairs some would surely share their noise, and noise that is used twice cancels.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedpeft.errors import PrivacyError
from fedpeft.machine.files import read, replace

BYTES = 32


@dataclass(frozen=True)
class RunKey:
    """The secret key of a run."""

    secret: bytes = field(repr=False)

    def stream(self, purpose: str, *ids: int) -> np.random.Generator:
        """Return the random stream for (purpose, ids); equal arguments give equal streams."""
        message = purpose.encode() + b"".join(int(i).to_bytes(8, "big") for i in ids)
        derived = hmac.digest(self.secret, message, "sha256")
        return np.random.Generator(np.random.Philox(key=int.from_bytes(derived[:16], "big")))

    @property
    def name(self) -> str:
        """A name that identifies the key without revealing it."""
        return hashlib.sha256(b"fedpeft run key" + self.secret).hexdigest()[:16]


def make_key(path: Path, secret: bytes | None = None) -> RunKey:
    """Return the key in `path`, and create it there if it is missing.

    Args:
        path: the file; a new one has mode 0600.
        secret: 32 bytes of a test, used instead of the system's randomness.

    Raises:
        PrivacyError: the file can't be used, see `read_key`.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, secret or os.urandom(BYTES), private=True)
    return read_key(path)


def read_key(path: Path) -> RunKey:
    """Read the key in `path`.

    Raises:
        PrivacyError: the file is missing, others may read it, or its length is wrong.
    """
    try:
        mode = path.stat().st_mode & 0o777
        secret = read(path)
    except OSError as error:
        raise PrivacyError(f"FP7073 the run's secret key {path} can't be read: {error.strerror}") from error
    if mode & 0o077:
        raise PrivacyError(f"FP7074 others may read the run's secret key {path} (mode {mode:o}); it must have mode 600")
    if len(secret) != BYTES:
        raise PrivacyError(f"FP7075 {path} holds {len(secret)} bytes instead of the {BYTES} of a run's secret key")
    return RunKey(secret)


def draw_gaussian(stream: np.random.Generator, like: Tensor) -> Tensor:
    """Draw standard normal numbers in the shape and dtype and on the device of `like`."""
    drawn = np.float64 if like.dtype == torch.float64 else np.float32
    return torch.from_numpy(stream.standard_normal(tuple(like.shape), dtype=drawn)).to(like)

"""What the tests of codecs send: vectors of all kinds, and states with a spectrum as steep as real updates have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode

LORA = {f"{i}.lora_{f}": s for i in range(4) for f, s in (("A", (8, 96)), ("B", (64, 8)))}
LARGER = {f"{i}.lora_{f}": s for i in range(8) for f, s in (("A", (8, 384)), ("B", (384, 8)))}
rows = pytest.mark.parametrize


def through(text, x, **options):
    """One vector through a codec and back."""
    tensor = torch.as_tensor(np.asarray(x))
    payload = parse_codec(text).encode({"x": tensor}, **options)
    return decode(payload, {"x": tuple(tensor.shape)})["x"].numpy()


def lora_state(seed=0, spectrum=0.6, shapes=LORA):
    """Factors of steep spectrum, like real updates."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (m, n) in shapes.items():
        r = min(m, n)
        left, right = torch.randn(m, r, generator=generator), torch.randn(r, n, generator=generator)
        state[name] = 1e-3 * (left * spectrum ** torch.arange(r)) @ right
    return state


def flat(state):
    return torch.cat([t.reshape(-1).double() for t in state.values()])


def relative_error(state, other):
    return float((flat(state) - flat(other)).norm() / flat(state).norm())


def along(x: np.ndarray, back: np.ndarray) -> float:
    """Return the part of x that arrives: <x, x'> / norm(x)^2."""
    return float(np.dot(x, back) / np.dot(x, x))

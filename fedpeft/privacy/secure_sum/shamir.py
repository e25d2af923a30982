"""Shamir's secret sharing (Communications of the ACM 22, 1979) over the integers modulo a prime above 2^256.

    f(x) = s + a_1 x + ... + a_{t-1} x^{t-1} mod P,   share of x: f(x);   s = sum_x f(x) prod_{y != x} y / (y - x) mod P

Any `t` shares give the secret of 32 bytes; fewer say nothing of it, since the coefficients are uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fedpeft.errors import PayloadError

PRIME: Final = 2**256 + 297
"""The smallest prime above 2^256."""

SECRET: Final = 32
"""Bytes of a secret."""

SHARE: Final = 33
"""Bytes of a share: a number below the prime, its highest byte first."""


def split(secret: bytes, holders: Sequence[int], threshold: int, draw: Callable[[int], bytes]) -> dict[int, bytes]:
    """A share for each holder.

    Args:
        secret: 32 bytes.
        holders: distinct ids, from 0.
        threshold: how many shares give the secret, 1 to the number of holders.
        draw: so many random bytes, from a source that nobody can predict.

    Raises:
        ValueError: another length, or a threshold that is not legal.
    """
    if len(secret) != SECRET or not 1 <= threshold <= len(holders) or len(set(holders)) < len(holders):
        raise ValueError(f"a secret of {len(secret)} bytes for {len(holders)} holders, {threshold} of which suffice")
    coefficients = [int.from_bytes(secret, "big"), *(_uniform(draw) for _ in range(threshold - 1))]
    return {holder: _at(coefficients, holder + 1).to_bytes(SHARE, "big") for holder in holders}


def joined(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret behind the first `threshold` shares, which are by holder.

    Raises:
        PayloadError: too few shares, or they do not belong together.
    """
    if len(shares) < threshold:
        raise PayloadError(f"{len(shares)} shares of a secret of which {threshold} are needed")
    points = [(holder + 1, int.from_bytes(share, "big")) for holder, share in list(shares.items())[:threshold]]
    secret = 0
    for x, value in points:
        above, below = 1, 1
        for y, _ in points:
            if y != x:
                above, below = above * y % PRIME, below * (y - x) % PRIME
        secret = (secret + value * above * pow(below, -1, PRIME)) % PRIME
    if secret >> (8 * SECRET):
        raise PayloadError("shares of a secret do not belong together")
    return secret.to_bytes(SECRET, "big")


def _at(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def _uniform(draw: Callable[[int], bytes]) -> int:
    """A number below the prime, all alike: what lies above is drawn anew."""
    while True:
        number = int.from_bytes(draw(SHARE), "big") & ((1 << 257) - 1)
        if number < PRIME:
            return number

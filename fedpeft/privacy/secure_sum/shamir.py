"""Shamir's secret sharing (Communications of the ACM 22, 1979) over the integers modulo a prime above 2^256.

    f(x) = s + a_1 x + ... + a_{t-1} x^{t-1} mod P,   share of x: f(x);   s = sum_x f(x) prod_{y != x} y / (y - x) mod P

Any `t` shares give the secret of 32 bytes. Fewer reveal nothing about it, since the coefficients are uniform.
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
    """Return a share of the secret for each holder.

    Args:
        secret: 32 bytes.
        holders: distinct ids, from 0.
        threshold: how many shares give the secret, 1 to the number of holders.
        draw: returns this many random bytes, from a source that nobody can predict.

    Raises:
        ValueError: the secret has another length, or the threshold is not legal.
    """
    if len(secret) != SECRET or not 1 <= threshold <= len(holders) or len(set(holders)) < len(holders):
        raise ValueError(f"a secret of {len(secret)} bytes for {len(holders)} holders, {threshold} of which suffice")
    coefficients = [int.from_bytes(secret, "big"), *(_draw_below_prime(draw) for _ in range(threshold - 1))]
    return {holder: _evaluate(coefficients, holder + 1).to_bytes(SHARE, "big") for holder in holders}


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret behind the first `threshold` shares, which are listed by holder.

    Raises:
        PayloadError: there are too few shares, or they do not belong together.
    """
    if len(shares) < threshold:
        raise PayloadError(f"FP6139 {len(shares)} shares of a secret have arrived, and {threshold} are needed")
    secret = _interpolate(_list_points(shares)[:threshold], 0)
    if secret >> (8 * SECRET):
        raise PayloadError("FP6140 shares of a secret do not belong together")
    return secret.to_bytes(SECRET, "big")


def find_false(shares: Mapping[int, bytes], right: Mapping[int, bytes], threshold: int) -> set[int]:
    """Return the holders whose shares do not lie on the polynomial of the first `threshold` right ones."""
    points = _list_points(right)[:threshold]
    return {x - 1 for x, value in _list_points(shares) if _interpolate(points, x) != value % PRIME}


def correct_shares(shares: Mapping[int, bytes], threshold: int) -> dict[int, bytes] | None:
    """Return the right shares if at most (shares - threshold) / 2 are false; None: no polynomial is that close.

    Gao's decoder of Reed-Solomon codes (2003): let g0 = prod (x - x_i), and g1 the polynomial through all shares. The
    extended Euclidean algorithm ends at a remainder r = u g0 + v g1 of degree below (shares + threshold) / 2. If v
    divides r, the quotient is the polynomial.
    """
    points = _list_points(shares)
    g0, g1 = _find_polynomial(points)
    before, now = (g0, [0]), (g1, [1])  # remainders, with their factor v
    while 2 * (len(now[0]) - 1) >= len(points) + threshold:
        quotient, rest = _divide(before[0], now[0])
        before, now = now, (rest, _subtract(before[1], _multiply(quotient, now[1])))
    if not any(now[0]):
        return None
    polynomial, rest = _divide(now[0], now[1])
    if any(rest) or len(polynomial) > threshold:
        return None
    return {x - 1: shares[x - 1] for x, value in points if _evaluate(polynomial, x) == value % PRIME}


def _list_points(shares: Mapping[int, bytes]) -> list[tuple[int, int]]:
    return [(holder + 1, int.from_bytes(share, "big")) for holder, share in shares.items()]


def _interpolate(points: Sequence[tuple[int, int]], at: int) -> int:
    """Return the value at `at` of the polynomial through the points."""
    total = 0
    for x, value in points:
        above, below = 1, 1
        for y, _ in points:
            if y != x:
                above, below = above * (y - at) % PRIME, below * (y - x) % PRIME
        total = (total + value * above * pow(below, -1, PRIME)) % PRIME
    return total


# Polynomials are lists of coefficients, the lowest first; the last one is not 0, but for the zero polynomial, [0].


def _find_polynomial(points: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return prod (x - x_i), and the polynomial through the points, by Newton's interpolation."""
    product, polynomial = [1], [0]
    for x, value in points:
        factor = (value - _evaluate(polynomial, x)) * pow(_evaluate(product, x), -1, PRIME) % PRIME
        polynomial = _subtract(polynomial, _multiply([-factor % PRIME], product))
        product = _multiply([-x % PRIME, 1], product)
    return product, polynomial


def _trim(polynomial: list[int]) -> list[int]:
    while len(polynomial) > 1 and not polynomial[-1]:
        polynomial.pop()
    return polynomial


def _multiply(one: Sequence[int], other: Sequence[int]) -> list[int]:
    product = [0] * (len(one) + len(other) - 1)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            product[i + j] = (product[i + j] + a * b) % PRIME
    return _trim(product)


def _subtract(one: Sequence[int], other: Sequence[int]) -> list[int]:
    length = max(len(one), len(other))
    a, b = [*one, *[0] * (length - len(one))], [*other, *[0] * (length - len(other))]
    return _trim([(x - y) % PRIME for x, y in zip(a, b, strict=True)])


def _divide(one: Sequence[int], other: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the quotient and the rest of two polynomials; the second is not zero."""
    rest, inverse = list(one), pow(other[-1], -1, PRIME)
    quotient = [0] * max(1, len(one) - len(other) + 1)
    for shift in range(len(one) - len(other), -1, -1):
        factor = quotient[shift] = rest[shift + len(other) - 1] * inverse % PRIME
        for i, b in enumerate(other):
            rest[shift + i] = (rest[shift + i] - factor * b) % PRIME
    return _trim(quotient), _trim(rest)


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def _draw_below_prime(draw: Callable[[int], bytes]) -> int:
    """Draw a number below the prime, uniformly: larger numbers are drawn again."""
    while True:
        number = int.from_bytes(draw(SHARE), "big") & ((1 << 257) - 1)
        if number < PRIME:
            return number

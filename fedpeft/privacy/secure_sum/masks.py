"""Masks: streams that two clients can both compute and nobody else can, and streams that only one client can compute.

    pairwise seed = HKDF-SHA256(X25519(own private key, peer's public key), info = purpose, round, both ids)
    mask          = ChaCha20 keystream of the seed, as integers modulo 2^bits

The primitives are those of `cryptography`: RFC 7748 (X25519), RFC 5869 (HKDF), RFC 8439 (ChaCha20 and Poly1305).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedpeft.errors import PayloadError

KEY: Final = 32
"""Bytes of keys and seeds."""


def derive_public_key(private: bytes) -> bytes:
    """Return the public key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def derive_seed(private: bytes, peer: bytes, purpose: str, context: bytes, first: int, second: int) -> bytes:
    """Derive the seed of 32 bytes that two clients share for one purpose in one context.

    Args:
        private: the private key of one client.
        peer: the public key of the other.
        purpose: name of the purpose.
        context: the context of the sum.
        first: id of one client.
        second: id of the other; both clients give the ids in the same order.

    Raises:
        PayloadError: the peer's public key would lead to a secret that everybody knows.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:  # all zero, whatever the private key
        raise PayloadError(f"FP6119 the public key of client {second} is not usable: {error}") from error
    ids = first.to_bytes(4, "big") + second.to_bytes(4, "big")
    return HKDF(SHA256(), KEY, salt=None, info=purpose.encode() + b"\0" + context + ids).derive(secret)


def check_public(key: bytes) -> None:
    """Reject a public key that leads to one known secret with every private key: its point has a low order.

    Raises:
        PayloadError: the point has a low order.
    """
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:  # the product is zero
        raise PayloadError(
            "FP6184 the public key has a low order: every secret that follows from it is known"
        ) from None


def dtype(bits: int) -> type[np.unsignedinteger]:
    """Return the type of integers modulo 2^bits, 1 to 32; their sums wrap automatically."""
    return np.uint16 if bits <= 16 else np.uint32


def stream(seed: bytes, length: int, bits: int) -> np.ndarray:
    """Return the mask of a seed: uniform integers modulo 2^bits, (length,)."""
    kind = np.dtype(dtype(bits)).newbyteorder("<")
    keystream = (
        Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(length * kind.itemsize))
    )
    numbers = np.frombuffer(keystream, kind).astype(dtype(bits))
    return reduce_modulo(numbers, bits)


def reduce_modulo(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers modulo 2^bits."""
    rest: np.ndarray = numbers & numbers.dtype.type((1 << bits) - 1)
    return rest


def pack(numbers: np.ndarray, bits: int) -> bytes:
    """Pack integers below 2^bits into `bits` bits each, the lowest bit first."""
    if bits in (8, 16, 32):
        return numbers.astype(f"<u{bits // 8}").tobytes()
    lowest = (numbers[:, None] >> np.arange(bits, dtype=numbers.dtype)) & numbers.dtype.type(1)
    return np.packbits(lowest.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack(content: bytes, length: int, bits: int) -> np.ndarray:
    """Unpack integers that `pack` has packed, (length,).

    Raises:
        PayloadError: the number of bytes is wrong.
    """
    expected = (length * bits + 7) // 8
    if len(content) != expected:
        raise PayloadError(
            f"FP6120 a masked vector has {len(content)} bytes, but {length} numbers of {bits} bits take {expected}"
        )
    kind = dtype(bits)
    if bits in (8, 16, 32):
        return np.frombuffer(content, f"<u{bits // 8}").astype(kind)
    lowest = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")[: length * bits].reshape(length, bits)
    numbers: np.ndarray = (lowest.astype(kind) << np.arange(bits, dtype=kind)).sum(1, dtype=kind)
    return numbers

"""The difference from a state that both ends hold.

The payload names the reference's version and carries a checksum of its values. So a receiver that holds another state
under the same version number refuses the payload instead of drifting away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedpeft.communication.payload import Array, Reader, Shape, compute_checksum, count_total, encode_varint
from fedpeft.communication.steps import MAX_VERSION, Context, Encoded, Plan, Signal, Transform
from fedpeft.errors import ConfigError


@dataclass(frozen=True)
class Delta(Transform):
    """x - reference; pass `reference=(version, state)` to encode and `references={version: state}` to decode."""

    lossless = False  # exact but for rounding
    needs_reference = True

    def encode(self, signal: Signal, context: Context) -> Encoded:
        """Subtract the reference; the parameters are its version and checksum."""
        if context.reference is None:
            raise ConfigError("FP1054 the codec step delta needs a reference state that both ends hold; none was given")
        version, base = context.reference
        if not 0 <= version <= MAX_VERSION:
            raise ConfigError(f"FP1055 the codec step delta needs a version from 0 to 2^62 - 1, got {version}")
        moved = Signal(signal.values - base, signal.shapes, signal.weights)
        return Encoded(moved, encode_varint(version) + compute_checksum(base).to_bytes(4, "little"))

    @classmethod
    def plan(cls, parameters: Reader, shapes: tuple[Shape, ...], context: Context) -> Plan:
        """Read version and checksum."""
        version = parameters.read_varint("reference version", MAX_VERSION)
        base = context.read_reference(version, parameters, count_total(shapes))

        def undo(values: Array, symbols: Sequence[Array]) -> Array:
            result: Array = values + base
            return result

        return Plan(shapes, (), undo)


part = Delta

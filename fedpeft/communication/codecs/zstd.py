"""Zstandard (RFC 8878) over the packed bytes: cheap gains after `cast` and `pack`, next to none after `rans`."""

from __future__ import annotations

from dataclasses import dataclass

import zstandard

from fedpeft.communication.steps import ByteStep
from fedpeft.errors import PayloadError
from fedpeft.parts import setting


@dataclass(frozen=True)
class Zstd(ByteStep):
    """A zstd frame that states its content's size, so that a receiver can refuse it before decompressing."""

    level: int = setting(3, "effort: 1 fast to 22 small; 3 is zstd's default", low=1, high=22)

    def encode(self, data: bytes) -> bytes:
        """Compress the bytes into one frame."""
        return zstandard.ZstdCompressor(level=self.level, write_checksum=False).compress(data)

    @classmethod
    def decode(cls, data: memoryview, bound: int) -> memoryview:
        """Decompress the content, if the frame states a size of at most `bound` and contains exactly that.

        Raises:
            PayloadError: the frame is not valid, or its content is too large or too short.
        """
        try:
            length = zstandard.get_frame_parameters(data).content_size
        except zstandard.ZstdError as error:
            raise PayloadError(f"FP6037 the payload's zstd frame is not valid: {error}") from None
        if length > bound:  # an unstated size is 2^64 - 1
            raise PayloadError(
                f"FP6038 the payload's zstd frame would grow to {length} bytes; at most {bound} are expected"
            )
        try:
            content = zstandard.ZstdDecompressor().decompress(data, max_output_size=bound, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise PayloadError(f"FP6037 the payload's zstd frame is not valid: {error}") from None
        if len(content) != length:
            raise PayloadError("FP6039 the payload's zstd frame is shorter than it states")
        return memoryview(content)


part = Zstd

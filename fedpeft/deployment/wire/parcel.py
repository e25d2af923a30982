"""An instruction or a report as a sequence of `Part` messages: a header, then its payloads in chunks.

Chunks keep every message far below gRPC's limit of 4 MB a message. They also let its flow control stop the sender of a
large payload while the receiver is busy. A receiver reads from the header how much follows, checks it against its own
limit before it accepts anything, and holds one payload at a time.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal

from fedpeft.communication.messages import PAYLOADS, Instruction, Report
from fedpeft.deployment.identity.signing import SignedStatement
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.deployment.wire.channel import CHUNK
from fedpeft.errors import PayloadError

FRAME = 5
"""Bytes that gRPC puts before each message: a flag and the length."""

TEXT_LIMIT = 4096
"""The longest text in a field, such as the reason why there is no update."""


def compute_wire_size(message: Any) -> int:
    """Return the bytes of a message on the wire, without HTTP/2's own frames and TLS."""
    return int(message.ByteSize()) + FRAME


def encode_statement(made: SignedStatement) -> v2.Statement:
    """Return a statement as a message."""
    return v2.Statement(content=made.content, signature=made.signature, certificate=made.certificate)


def decode_statement(told: v2.Statement) -> SignedStatement:
    """Return the statement of a message."""
    return SignedStatement(told.content, told.signature, told.certificate)


def split_into_parts(
    task: str, content: Instruction | Report, statement: SignedStatement | None = None
) -> Iterator[v2.Part]:
    """Yield the messages of an instruction or a report on `task`, with the server's statement about it."""
    header = v2.Header(task=task, statement=encode_statement(statement) if statement else None)
    defaults = {field.name: field.default for field in dataclasses.fields(content)}
    for name, value in vars(content).items():
        if name not in PAYLOADS and value != defaults[name]:  # a peer may be older than a field that is not used
            header.fields[name].CopyFrom(_encode_value(value))
    payloads = {name: getattr(content, name, b"") for name in PAYLOADS}
    header.payloads.extend(v2.Payload(name=name, size=len(data)) for name, data in payloads.items() if data)
    yield v2.Part(header=header)
    for data in payloads.values():
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            yield v2.Part(chunk=bytes(view[start : start + CHUNK]))


def _encode_value(value: object) -> v2.Value:
    if isinstance(value, bool):
        return v2.Value(flag=value)
    if isinstance(value, int):
        return v2.Value(integer=value)
    if isinstance(value, float):
        return v2.Value(number=value)
    if isinstance(value, str):
        return v2.Value(text=value[:TEXT_LIMIT])
    if isinstance(value, tuple):
        return v2.Value(integers=v2.Integers(items=value))
    raise TypeError(f"{type(value).__name__} does not travel")


def decode_value(name: str, value: v2.Value, hint: Any) -> Any:
    """Return a field's value as its type hint demands; a whole number also serves as a float.

    Raises:
        PayloadError: the value has another type, is too long, or is not among the legal texts.
    """
    annotation = typing.get_origin(hint) or hint
    kind = value.WhichOneof("kind")
    if annotation is float and kind == "integer":
        return float(value.integer)
    if kind != ("text" if annotation is Literal else _KINDS[annotation.__name__]):
        raise PayloadError(f"FP6098 the parcel's field {name} is of another kind ({kind})")
    decoded = getattr(value, kind)
    if kind == "text" and len(decoded) > TEXT_LIMIT:
        raise PayloadError(f"FP6099 the parcel's field {name} is {len(decoded)} characters long")
    if annotation is Literal and decoded not in (legal := typing.get_args(hint)):
        raise PayloadError(f"FP6100 the parcel's field {name} is {decoded[:40]!r}; legal are {', '.join(legal)}")
    return tuple(decoded.items) if kind == "integers" else decoded


_KINDS = {"int": "integer", "float": "number", "str": "text", "bool": "flag", "tuple": "integers"}


class IncomingParcel:
    """An instruction or a report on its way in.

    Args:
        cls: class of its content.
        limit: the most bytes that its payloads may have together.
        header: the first message.

    Raises:
        PayloadError: the header does not describe a `cls`, or announces more than `limit`.
    """

    def __init__(self, cls: type[Any], limit: int, header: v2.Header) -> None:
        """Check the header, and prepare to receive its payloads."""
        self.cls = cls
        self.task: str = header.task
        self.statement = decode_statement(header.statement)
        self.fields = _decode_fields(cls, header)
        self._missing: list[tuple[str, int]] = [(p.name, p.size) for p in header.payloads]
        names = [name for name, _ in self._missing]
        legal = [name for name in PAYLOADS if name in cls.__dataclass_fields__]
        if len(set(names)) < len(names) or not set(names) <= set(legal):
            raise PayloadError(
                f"FP6092 the parcel announces {len(names)} payloads; legal are {', '.join(legal)}, each once"
            )
        if (total := sum(size for _, size in self._missing)) > limit:
            raise PayloadError(f"FP6093 the parcel announces {total} bytes; at most {limit} are taken")
        self._missing = [(name, size) for name, size in self._missing if size]
        self._payloads: dict[str, bytearray] = {name: bytearray() for name in names}

    @property
    def complete(self) -> bool:
        """Whether all payloads have arrived."""
        return not self._missing

    def add(self, chunk: bytes) -> None:
        """Add a chunk.

        Raises:
            PayloadError: no chunk of this length is missing. Many short chunks would be a flood.
        """
        if not self._missing:
            raise PayloadError(f"FP6094 {len(chunk)} bytes more arrived than the parcel announced")
        if len(chunk) < min(CHUNK, self._missing_bytes):
            raise PayloadError(
                f"FP6095 a chunk of {len(chunk)} bytes arrived; only a payload's last has fewer than {CHUNK}"
            )
        while chunk and self._missing:
            name, size = self._missing[0]
            room = self._missing_bytes
            self._payloads[name] += chunk[:room]
            chunk = chunk[room:]
            if len(self._payloads[name]) == size:
                self._missing.pop(0)
        if chunk:
            raise PayloadError(f"FP6094 {len(chunk)} bytes more arrived than the parcel announced")

    @property
    def _missing_bytes(self) -> int:
        """Bytes of the present payload that have not arrived."""
        name, size = self._missing[0]
        return size - len(self._payloads[name])

    def get_content(self) -> Any:
        """Return the content.

        Raises:
            PayloadError: a part of it is missing.
        """
        if self._missing:
            raise PayloadError("FP6096 the parcel ended before all of it had arrived")
        return self.cls(**{"payload": b""} | {n: bytes(d) for n, d in self._payloads.items()} | self.fields)


class ParcelStream:
    """Parcels that arrive one after another.

    Args:
        cls: class of their content.
        limit: the most bytes that the payloads of one may have together.
    """

    def __init__(self, cls: type[Any], limit: int) -> None:
        """Wait for the first parcel."""
        self._cls, self._limit = cls, limit
        self._incoming: IncomingParcel | None = None

    def add(self, part: v2.Part) -> tuple[str, Any, SignedStatement] | None:
        """Add a message; return the task, content and statement of a parcel that is whole now, and forget it.

        A chunk before any header is ignored.

        Raises:
            PayloadError: the message is not what a parcel needs next.
        """
        if part.HasField("header"):
            self._incoming = IncomingParcel(self._cls, self._limit, part.header)
        elif self._incoming is not None:
            self._incoming.add(part.chunk)
        parcel = self._incoming
        if parcel is None or not parcel.complete:
            return None
        self._incoming = None
        return parcel.task, parcel.get_content(), parcel.statement


def _decode_fields(cls: type[Any], header: v2.Header) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.name not in PAYLOADS}
    fields: dict[str, Any] = {}
    for name, value in header.fields.items():
        if name not in known:
            raise PayloadError(f"FP6097 the parcel has a field {name[:40]!r} that this version does not have")
        fields[name] = decode_value(name, value, hints[name])
    for name, field in known.items():
        if name not in fields and field.default is dataclasses.MISSING:
            raise PayloadError(f"FP6101 the parcel lacks the field {name}")
    return fields

"""What the server and its clients say to each other, and how that looks as Flower messages.

An `Instruction` asks a client to prepare or to train; a `Report` answers it. Both carry one opaque payload, made by a
codec. In a Flower message the payload is ONE array of bytes, because Flower pays per array, and everything else is a
`ConfigRecord`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedpeft.adapter import ClientForm
from fedpeft.errors import PayloadError

Kind = Literal["prepare", "train"]

PAYLOAD_TYPE = "fedpeft.v1"
"""The `stype` of the array that holds a payload."""


@dataclass(frozen=True)
class Instruction:
    """The server to one client.

    Attributes:
        kind: "prepare" (statistics before round 1) or "train".
        round: from 1; 0 for "prepare".
        client: client id.
        payload: the encoded state that the client starts from.
        learning_rate: of this round.
        proximal: mu of FedProx; 0: none.
        rank, alpha: of the client's LoRA factors; 0: no LoRA.
        trained: positions in the layout of the tensors to train; empty: all.
        acknowledged: the last round of this client that the server has recorded; its state of that round is valid.
    """

    kind: Kind
    round: int
    client: int
    payload: bytes
    learning_rate: float = 0.0
    proximal: float = 0.0
    rank: int = 0
    alpha: float = 0.0
    trained: tuple[int, ...] = ()
    acknowledged: int = 0

    @property
    def form(self) -> ClientForm | None:
        """The client's LoRA rank and alpha."""
        return ClientForm(self.rank, self.alpha) if self.rank else None


@dataclass(frozen=True)
class Report:
    """A client to the server: the encoded update (or statistics) and what it says of its work."""

    client: int
    round: int
    payload: bytes
    rows: int = 0
    steps: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    error: str = ""


def to_record(content: Instruction | Report) -> RecordDict:
    """As the content of a Flower message."""
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(content).items() if k != "payload"}
    array = Array("uint8", (len(content.payload),), PAYLOAD_TYPE, content.payload)
    return RecordDict({"fedpeft": ConfigRecord(fields), "payload": ArrayRecord({"payload": array})})


def _from_record(record: RecordDict, cls: type[Any]) -> Any:
    try:
        fields: dict[str, Any] = dict(record.config_records["fedpeft"])
        array = record.array_records["payload"]["payload"]
        if array.stype != PAYLOAD_TYPE:
            raise PayloadError(f"a payload of type {array.stype!r} arrived; this version reads {PAYLOAD_TYPE!r}")
        if "trained" in fields:
            fields["trained"] = tuple(fields["trained"])
        return cls(payload=array.data, **fields)
    except (KeyError, TypeError) as error:
        raise PayloadError(f"the message is not a fedpeft {cls.__name__.lower()}: {error}") from error


def instruction_of(message: Message) -> Instruction:
    """The instruction in a Flower message, or PayloadError."""
    found: Instruction = _from_record(message.content, Instruction)
    return found


def report_of(message: Message) -> Report:
    """The report in a Flower message, or PayloadError."""
    found: Report = _from_record(message.content, Report)
    return found

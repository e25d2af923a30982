"""Instructions and reports as Flower messages, between a server and clients behind a Flower `Grid`.

In a Flower message a payload is ONE array of bytes, because Flower pays per array, and everything else is a
`ConfigRecord`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args, get_type_hints

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedpeft.communication.messages import ADDED, PAYLOADS, Instruction, Kind, Report
from fedpeft.errors import PayloadError

PAYLOAD_TYPE = "fedpeft.v4"
"""The `stype` of a payload's array: the version of these messages. A peer reads one version."""


def write_record(content: Instruction | Report) -> RecordDict:
    """Write a message as the content of a Flower message."""
    own = vars(content)
    names = [k for k in own if k not in PAYLOADS and (k not in ADDED or own[k])]
    fields = {k: list(own[k]) if isinstance(own[k], tuple) else own[k] for k in names}
    payloads = {k: own[k] for k in PAYLOADS if k == "payload" or own.get(k)}
    arrays = {k: Array("uint8", (len(data),), PAYLOAD_TYPE, data) for k, data in payloads.items()}
    return RecordDict({"fedpeft": ConfigRecord(fields), "payload": ArrayRecord(arrays)})


@cache
def _get_field_types(cls: Any) -> dict[str, tuple[type, ...]]:
    """Return the types of a message's fields, as Flower delivers them."""
    plain = {int: (int,), float: (int, float), bool: (bool,), tuple[int, ...]: (list,)}
    return {name: plain.get(hint, (str,)) for name, hint in get_type_hints(cls).items() if name not in PAYLOADS}


def _check_types(fields: Mapping[str, Any], cls: type[Instruction] | type[Report]) -> None:
    for name, legal in _get_field_types(cls).items():  # type: ignore[arg-type]  # mypy: classes are hashable
        value = fields.get(name)
        if name in fields and not (isinstance(value, legal) and (bool in legal or not isinstance(value, bool))):
            raise PayloadError(f"FP6057 {name} is {value!r:.50}, not of type {legal[-1].__name__}")
    if "kind" in fields and cls is Instruction and fields["kind"] not in get_args(Kind):
        raise PayloadError(f"FP6058 kind is {fields['kind']!r:.50}; legal are {', '.join(get_args(Kind))}")


def _read_record(record: RecordDict, cls: type[Any]) -> Any:
    try:
        fields: dict[str, Any] = dict(record.config_records["fedpeft"])
        _check_types(fields, cls)
        arrays = record.array_records["payload"]
        for array in arrays.values():
            if array.stype != PAYLOAD_TYPE:
                raise PayloadError(
                    f"FP6059 a payload of type {array.stype!r} arrived; this version reads {PAYLOAD_TYPE!r}"
                )
        fields |= {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
        return cls(payload=arrays["payload"].data, **{k: a.data for k, a in arrays.items() if k != "payload"}, **fields)
    except (KeyError, TypeError) as error:
        raise PayloadError(f"FP6060 the message is not a fedpeft {cls.__name__.lower()}: {error}") from error


def read_instruction(message: Message) -> Instruction:
    """Read the instruction in a Flower message, or raise PayloadError."""
    found: Instruction = _read_record(message.content, Instruction)
    return found


def read_report(message: Message) -> Report:
    """Read the report in a Flower message, or raise PayloadError."""
    found: Report = _read_record(message.content, Report)
    return found


def read_answer(asked: Instruction, message: Message) -> Report:
    """Return the report in the reply to an instruction; if the reply is not such a report, one with the error."""
    try:
        report = read_report(message)
        if (report.client, report.round) != (asked.client, asked.round):
            raise PayloadError(
                f"FP6061 the server asked client {asked.client} in round {asked.round}, and the answer is from client "
                f"{report.client} for round {report.round}"
            )
    except PayloadError as error:
        return Report(asked.client, asked.round, b"", error=str(error))
    return report

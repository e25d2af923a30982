"""What the server and its clients say to each other, and how that looks as Flower messages.

An `Instruction` asks a client to prepare, to train or to evaluate; a `Report` answers it. Both carry one opaque
payload, made by a codec, and in runs whose drift corrections have states that travel a second one. In a Flower message
a payload is ONE array of bytes, because Flower pays per array, and everything else is a `ConfigRecord`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedpeft.errors import PayloadError
from fedpeft.models.precisions import ADAPTERS, BASES
from fedpeft.peft.adapter import AdapterShape, Layout

Kind = Literal["prepare", "train", "evaluate", "sum"]

PAYLOAD_TYPE = "fedpeft.v4"
"""The `stype` of the array that holds a payload: the version of these messages, of which a peer reads one."""

PAYLOADS = ("payload", "correction", "residual", "told", "said")
"""The fields of messages that travel as arrays."""


ALIKE = ("kind", "round", "learning_rate", "trained", "private", "base", "correction", "told", "asks")
"""The fields of an instruction that all clients of a round are sent alike: a record fixes them."""

OWN = ("client", "rank", "alpha", "steps", "bits", "base_precision", "adapter_precision", "acknowledged", "attempt")
"""The fields in which clients' instructions of a round may differ: a statement about a task says them in the clear."""

LED_BY_RECORD = ("payload", "residual")
"""The fields that differ with what a client holds, and lead all clients to the recorded state."""

OF_SUM = ("step", "said")
"""The fields of the steps of a secure sum, which the members check among themselves."""

LOCAL = ("released", "recorded")
"""The fields that a client fills in by itself, from a record; whatever a server sends there is overwritten."""

LARGEST = 2**31 - 1
"""The largest round, client id or version."""

SUM_STEPS = 5
"""Steps of a secure sum."""

MOST_STEPS = 1_000_000
"""The most local steps that an instruction may ask for."""

NOT_JOINED = "it has not joined"
"""What is answered for a place in a federation that nobody has taken."""

LOST = "FP6188 it has lost what it kept of earlier rounds; from its next round on it takes part as a newcomer"
"""What a client reports whose folder is gone: the server forgets that it has taken part."""

MOST_WORDS = 1000
"""Characters of a client's reason for its failure that a server keeps: a sentence, or a few."""


@dataclass(frozen=True)
class Instruction:
    """The server to one client.

    Attributes:
        kind: "prepare" (statistics before round 1), "train", "evaluate" (on the client's own held-out rows), or "sum"
            (a step of a secure sum in which the client says nothing of its rows).
        round: from 1; 0 for "prepare".
        client: client id.
        payload: the encoded state that the client starts from.
        learning_rate: of this round.
        rank, alpha: of the client's LoRA factors; 0: no LoRA.
        trained: positions in the layout of the tensors to train; empty: all.
        acknowledged: the last round of this client that the server has recorded; its state of that round is valid.
        private: positions in the layout of the tensors that the client keeps; a newcomer is sent their initial values.
        steps: local steps; 0: as the client's own settings say.
        base: version of what exact strategies have put into the base (`fedpeft.communication.base_residual`); 0: the
            plain base.
        correction: the states of the server's drift corrections, encoded (`fedpeft.clients.drift`); empty: none.
        bits: precision of the update, a parameter; 0: the codec's own.
        base_precision: of the client's frozen base; empty: the run's own.
        adapter_precision: of the adapter as the client holds it, before and after training.
        residual: what brings a remote client's base to version `base` (`Residual.encode_payload`); clients on the
            server's
            machine read it from a file instead.
        told: what the sums before round 1 have told, encoded: shares of the classes among all rows
            (`fedpeft.clients.label_shift`), or how features are whitened (`fedpeft.aggregation.whitening`); empty:
            nothing.
        attempt: of the round, under privacy: what is tried anew with other inputs has other noise.
        released: digest of the state that `payload` must lead to, and of those that smaller ranks have been sent
            (`fedpeft.communication.release.write_released`), as the client has them from a record of the server's;
            empty: it is not compared.
        recorded: digest of the content that the server's record of the round gives all clients alike, as the client has
            it from the record (`fedpeft.deployment.transcript.round_record`); empty: there are no records.
        step: of a secure sum (`fedpeft.privacy.secure_sum.member`), from 1; the third is to prepare, or to train; 0:
            the answer is not summed under masks.
        said: what the others in the sum say to this client, as the server passes it on.
        asks: in an evaluation, the text of a question (`fedpeft.trust.question`) that is answered with sums over the
            client's own held-out rows; empty: loss and accuracy.
    """

    kind: Kind
    round: int
    client: int
    payload: bytes
    learning_rate: float = 0.0
    rank: int = 0
    alpha: float = 0.0
    trained: tuple[int, ...] = ()
    acknowledged: int = 0
    private: tuple[int, ...] = ()
    steps: int = 0
    base: int = 0
    correction: bytes = b""
    bits: float = 0.0
    base_precision: str = ""
    adapter_precision: str = "fp32"
    residual: bytes = b""
    told: bytes = b""
    attempt: int = 0
    released: str = ""
    recorded: str = ""
    step: int = 0
    said: bytes = b""
    asks: str = ""

    @property
    def form(self) -> AdapterShape | None:
        """The client's LoRA rank and alpha."""
        return AdapterShape(self.rank, self.alpha) if self.rank else None

    def check_rank(self, layout: Layout) -> None:
        """Refuse factors of a rank that the layout does not have, before anything is allocated for them.

        Raises:
            PayloadError: names both ranks.
        """
        most = layout.form.rank if layout.form else 0
        if self.rank > most:
            raise PayloadError(
                f"FP6002 the server asks for an adapter of rank {self.rank}, this client's has at most {most}"
            )

    def check(self, tensors: int) -> None:
        """Refuse what no server of good faith sends, before anything is done for it.

        Args:
            tensors: in the layout, which `trained` and `private` name by position.

        Raises:
            PayloadError: a field has a value that is not legal.
        """
        limits = {"steps": MOST_STEPS, "step": SUM_STEPS}
        for name in ("round", "client", "acknowledged", "base", "attempt", "rank", "steps", "step"):
            most = limits.get(name, LARGEST)
            if not 0 <= (whole := getattr(self, name)) <= most:
                raise PayloadError(f"FP6052 the server asks for {name}={whole}; legal are 0 to {most}")
        for name in ("learning_rate", "alpha", "bits"):
            number: float = getattr(self, name)
            if not (math.isfinite(number) and number >= 0) or (name == "alpha" and self.rank and not number):
                raise PayloadError(
                    f"FP6053 the server asks for {name}={number}; legal are finite numbers that are not negative"
                )
        for name in ("trained", "private"):
            positions: tuple[int, ...] = getattr(self, name)
            if len(set(positions)) < len(positions) or not all(0 <= i < tensors for i in positions):
                raise PayloadError(
                    f"FP6054 the server names tensors {positions!s:.80} as {name}; legal are positions 0 to "
                    f"{tensors - 1}, each once"
                )
        if self.asks and self.kind != "evaluate":
            raise PayloadError(f"FP6055 the server asks a question with {self.kind}; legal is evaluate")
        for name, legal in (("base_precision", BASES), ("adapter_precision", ADAPTERS)):
            if (word := getattr(self, name)) not in legal:
                raise PayloadError(
                    f"FP6056 the server asks for {name}={word!r:.50}; legal are {', '.join(map(repr, legal))}"
                )


@dataclass(frozen=True)
class Report:
    """A client to the server: the encoded update (or statistics) and what it says of its work.

    Attributes:
        correct, count: of an evaluation: correct predictions out of how many; `loss` is per prediction.
        error: why there is no update; empty: there is one.
        correction: the changes of the states of the client's drift corrections, encoded.
        charged: releases on the ledger of a client that adds noise itself, those of this report included.
        spent: whether there is no update because that client's privacy budget allows none.
        used: distinct rows that the client has trained on up to now, where it continues each round where the last one
            stopped; 0: it does not say.
        joules: that the client's machine has measured while it trained; 0: it does not say.
    """

    client: int
    round: int
    payload: bytes
    rows: int = 0
    steps: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    error: str = ""
    correct: float = 0.0
    count: float = 0.0
    correction: bytes = b""
    charged: int = 0
    spent: bool = False
    used: int = 0
    joules: float = 0.0

    @property
    def bytes(self) -> int:
        """What the report costs."""
        return len(self.payload) + len(self.correction)

    def raise_error(self) -> None:
        """Refuse a report that says why there is no update, in words that files and terminals can take.

        Raises:
            PayloadError: the words, with escapes for what can't be printed, and no more than `MOST_WORDS` of them.
        """
        if self.error:
            words = self.error[:MOST_WORDS]
            raise PayloadError("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words))


def write_record(content: Instruction | Report) -> RecordDict:
    """As the content of a Flower message."""
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(content).items() if k not in PAYLOADS}
    own = vars(content)
    payloads = {k: own[k] for k in PAYLOADS if k == "payload" or own.get(k)}
    arrays = {k: Array("uint8", (len(data),), PAYLOAD_TYPE, data) for k, data in payloads.items()}
    return RecordDict({"fedpeft": ConfigRecord(fields), "payload": ArrayRecord(arrays)})


@cache
def _get_field_types(cls: Any) -> dict[str, tuple[type, ...]]:
    """What the values of a message's fields are, as Flower brings them."""
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
    """The instruction in a Flower message, or PayloadError."""
    found: Instruction = _read_record(message.content, Instruction)
    return found


def report_of(message: Message) -> Report:
    """The report in a Flower message, or PayloadError."""
    found: Report = _read_record(message.content, Report)
    return found


def answer_to(asked: Instruction, message: Message) -> Report:
    """The report in the reply to an instruction; where it is no report on it, one that says so."""
    try:
        report = report_of(message)
        if (report.client, report.round) != (asked.client, asked.round):
            raise PayloadError(
                f"FP6061 client {asked.client} was asked in round {asked.round}, and answered as client "
                f"{report.client} for round {report.round}"
            )
    except PayloadError as error:
        return Report(asked.client, asked.round, b"", error=str(error))
    return report

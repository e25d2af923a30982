"""The messages between the server and its clients.

An `Instruction` asks a client to prepare, to train or to evaluate; a `Report` answers it. Both carry one opaque
payload, made by a codec. In runs whose drift corrections have states that travel, they carry a second one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedpeft.errors import PayloadError
from fedpeft.models.precisions import ADAPTERS, BASES
from fedpeft.peft.adapter import AdapterShape, Layout

Kind = Literal["prepare", "train", "evaluate", "sum"]

PAYLOADS = ("payload", "correction", "residual", "told", "said")
"""The fields of messages that travel as bytes."""

ALIKE = ("kind", "round", "learning_rate", "trained", "private", "base", "correction", "told", "asks")
"""The fields of an instruction that are equal for all clients of a round: a record fixes them."""

OWN = (
    "client", "rank", "alpha", "steps", "bits", "base_precision", "adapter_precision", "acknowledged", "attempt",
    "task",
)  # fmt: skip
"""The fields that may differ between clients of a round: a statement about a task lists them in the clear."""

ADDED = frozenset({"task"})
"""The fields that version 0.3.0 lacked. Digests, statements and messages leave them out at their defaults."""

LED_BY_RECORD = ("payload", "residual")
"""The fields that depend on what a client holds, and lead all clients to the recorded state."""

OF_SUM = ("step", "said")
"""The fields of the steps of a secure sum, which the members check among themselves."""

LOCAL = ("released", "recorded")
"""The fields that a client fills in from a record; it overwrites whatever a server sends there."""

LARGEST = 2**31 - 1
"""The largest round, client id or version."""

SUM_STEPS = 5
"""Steps of a secure sum."""

MOST_STEPS = 1_000_000
"""The most local steps that an instruction may ask for."""

MOST = {
    **dict.fromkeys(("round", "client", "acknowledged", "base", "attempt", "rank"), LARGEST),
    "steps": MOST_STEPS,
    "step": SUM_STEPS,
    "task": LARGEST,
}
"""The largest values of an instruction's whole numbers, in the order of checks; the smallest is 0."""

NOT_JOINED = "it has not joined"
"""The error of a place in a federation that nobody has taken."""

LOST = "FP6188 it has lost its state of earlier rounds; from its next round on it takes part as a newcomer"
"""The error of a client whose folder is gone: the server forgets that it has taken part."""

MOST_WORDS = 1000
"""The most characters of a client's error that a server keeps: a sentence, or a few."""


@dataclass(frozen=True)
class Instruction:
    """A message from the server to one client.

    Attributes:
        kind: "prepare" (statistics before round 1), "train", "evaluate" (on the client's own held-out examples), or
            "sum" (a step of a secure sum in which the client reveals nothing about its examples).
        round: from 1; 0 for "prepare".
        client: client id.
        payload: the encoded state that the client starts from.
        learning_rate: learning rate of this round.
        rank: rank of the client's LoRA factors; 0: no LoRA.
        alpha: alpha of the client's LoRA factors.
        trained: positions in the layout of the tensors to train; empty: all.
        acknowledged: the last round of this client that the server has recorded; its state of that round is valid.
        private: positions in the layout of the tensors that the client keeps; a newcomer receives their initial values.
        steps: local steps; 0: the number in the client's own settings.
        base: version of the base that exact strategies have changed (`fedpeft.communication.base_residual`); 0: the
            plain base.
        correction: the states of the server's drift corrections, encoded (`fedpeft.clients.drift`); empty: none.
        bits: bits per parameter of the update; 0: the codec's own.
        base_precision: precision of the client's frozen base; empty: the run's own.
        adapter_precision: precision of the adapter as the client holds it, before and after training.
        residual: payload that brings a remote client's base to version `base` (`Residual.encode_payload`); clients on
            the server's machine read it from a file instead.
        told: results of the sums before round 1, encoded. They are the class shares of all examples
            (`fedpeft.clients.label_shift`), or how features are whitened (`fedpeft.aggregation.whitening`). Empty:
            none.
        attempt: attempt of the round, under privacy: a repetition with other inputs has other noise.
        released: digest of the state that `payload` must lead to, and digests of the states of smaller ranks
            (`write_released` of broadcast_digests.py). The client takes them from a record of the server's.
            Empty: they are not compared.
        recorded: digest of the content that the server's record of the round gives to all clients alike. The client
            takes it from the record (`fedpeft.deployment.transcript.round_record`); empty: there are no records.
        step: step of a secure sum (`fedpeft.privacy.secure_sum.member`), from 1; the third is to prepare, or to train;
            0: the answer is not summed under masks.
        said: messages of the others in the sum to this client, which the server passes on.
        asks: in an evaluation, the text of a question (`fedpeft.trust.question`) that is answered with sums over the
            client's own held-out examples; empty: loss and accuracy.
        task: in continual learning, the task that the client trains on, from 1; 0: there is one task. It follows from
            the settings and the round (`fedpeft.data.task_sequence.TaskSchedule`), and a real client checks it.
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
    task: int = 0

    @property
    def form(self) -> AdapterShape | None:
        """The client's LoRA rank and alpha; None: no LoRA."""
        return AdapterShape(self.rank, self.alpha) if self.rank else None

    def check_rank(self, layout: Layout) -> None:
        """Reject factors of a rank that the layout does not have, before anything is allocated for them.

        Raises:
            PayloadError: the rank is too large; the message contains both ranks.
        """
        most = layout.form.rank if layout.form else 0
        if self.rank > most:
            raise PayloadError(
                f"FP6002 the server asks for an adapter of rank {self.rank}, this client's has at most {most}"
            )

    def check(self, tensors: int) -> None:
        """Reject values that no honest server sends, before any work.

        Args:
            tensors: number of tensors in the layout, which `trained` and `private` name by position.

        Raises:
            PayloadError: the value of a field is not legal.
        """
        for name, most in MOST.items():
            if not 0 <= (whole := getattr(self, name)) <= most:
                raise PayloadError(f"FP6052 the server asks for {name}={whole}; legal are 0 to {most}")
        for name in ("learning_rate", "alpha", "bits"):
            number: float = getattr(self, name)
            if not 0 <= number < math.inf or (name == "alpha" and self.rank and not number):
                raise PayloadError(
                    f"FP6053 the server asks for {name}={number}; legal are finite numbers that are not negative"
                )
        for name in ("trained", "private"):
            positions: tuple[int, ...] = getattr(self, name)
            if len(set(filter(range(tensors).__contains__, positions))) < len(positions):
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
    """A message from a client to the server: the encoded update (or statistics) and facts about its work.

    Attributes:
        client: client id.
        round: the round of the instruction.
        payload: the encoded update or statistics.
        rows: number of examples that it has trained on.
        steps: number of local steps.
        loss: mean loss.
        seconds: time of the work.
        error: why there is no update; empty: there is one.
        correct: correct predictions of an evaluation, out of `count`; then `loss` is per prediction.
        count: predictions of an evaluation.
        correction: the changes of the states of the client's drift corrections, encoded.
        charged: releases on the ledger of a client that adds noise itself, those of this report included.
        spent: whether there is no update because that client's privacy budget allows none.
        used: distinct examples that the client has trained on up to now, if it continues each round where the last one
            stopped; 0: unknown.
        joules: energy that the client's machine has measured while it trained; 0: unknown.
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
        """The bytes of the report's payloads."""
        return len(self.payload) + len(self.correction)

    def raise_error(self) -> None:
        """Raise the report's error, if it has one, in characters that files and terminals can take.

        Raises:
            PayloadError: the error, with escapes for unprintable characters, and at most `MOST_WORDS` characters of it.
        """
        if self.error:
            words = self.error[:MOST_WORDS]
            raise PayloadError("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words))

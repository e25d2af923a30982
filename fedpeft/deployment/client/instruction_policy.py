"""The records and instructions that a real client accepts, given the settings that all clients received.

A server may not give one client another model, or other work, than the record of the round shows to all clients. So
every field of an instruction is one of three kinds. It is the same for all clients
(`fedpeft.communication.messages.ALIKE`), or in the short list of fields in which clients may differ (`OWN`), or it
leads to the state that the record fixes. The client itself computes the legal forms of its adapter: the rank is at most
the one that it has joined with, and alpha follows from it.

In a secure sum nothing may differ. There a difference could bring all updates but one to zero, and the sum would be the
one update that is left. So a client of a secure sum takes one form, and no field of `OWN` that changes its work.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final, Self

from fedpeft.aggregation.task_rules import get_client_form
from fedpeft.communication.broadcast_digests import UNCOMPARED, format_form, format_state_name, is_newcomer
from fedpeft.communication.codec import Codec
from fedpeft.communication.downlink import explain_uncompared
from fedpeft.communication.messages import Instruction
from fedpeft.data.task_sequence import TaskSchedule
from fedpeft.deployment.transcript.round_record import DIGEST, RoundRecord
from fedpeft.errors import PayloadError, RunError
from fedpeft.peft.adapter import AdapterShape, Layout
from fedpeft.wiring.run_spec import RunSpec
from fedpeft.wiring.setup import Setup

SUMMED: Final = frozenset(
    {
        "kind", "round", "learning_rate", "trained",  # the record fixes them
        "rank", "alpha", "told", "task",  # the client's own settings fix them
        "payload", "released", "recorded",  # lead to the recorded state
        "client", "acknowledged", "attempt",  # name who is asked, and when: the answer does not depend on them
        "step", "said",  # the members of the sum check them
    }
)  # fmt: skip
"""Fields that an instruction of a secure sum may set; all others must have their defaults."""


@dataclass(frozen=True)
class InstructionPolicy:
    """The records and instructions that one client accepts.

    Attributes:
        layout: the federation's adapter.
        parts: the other parts that the settings describe.
        seed: seed of the run.
        mixed: whether clients may have different ranks.
        rank: the largest rank that this client has joined with; 0: any.
        tasks: the rounds of each task in continual learning; None: there is one task.
    """

    layout: Layout
    parts: RunSpec
    seed: int
    mixed: bool
    rank: int = 0
    tasks: TaskSchedule | None = None

    @classmethod
    def from_setup(cls, setup: Setup, rank: int) -> Self:
        """Return the policy of a client whose `setup` follows the server's settings."""
        mixed = setup.strategy.mixed_ranks or setup.factor_view is not None
        tasks = None if setup.facts.tasks is None else setup.facts.tasks.schedule
        return cls(setup.layout, setup, setup.config.seed, mixed and setup.secure_sum is None, rank, tasks)

    @property
    def _codec(self) -> Codec:
        return self.parts.downlink

    # ------------------------------------------------------------------------------------------------------- records

    def check_record(self, record: RoundRecord) -> None:
        """Refuse a record that leaves the server a choice of models.

        Raises:
            RunError: it has a form that no client of these settings has, or no digest although clients compare one.
        """
        if record.asks is None:
            raise RunError(f"FP5242 the server's record of {record.label} is one of an earlier version")
        if record.asks and record.kind != "evaluate":
            raise RunError(
                f"FP5243 the server's record of {record.label} has a question, which belongs to an evaluation"
            )
        legal = {} if record.kind == "prepare" else self._list_legal_states()
        for name, digest in record.states.items():
            if name not in legal:
                raise RunError(
                    f"FP5244 the server records a model of {name} in {record.label}; {self._describe_forms()}"
                )
            if (why := self._explain_uncompared(legal[name])) and digest != why:
                raise RunError(
                    f"FP5245 the server's record of {record.label} has {digest!r:.20} as the digest of the "
                    f"model of {name}, but by the settings it is {why!r}: {UNCOMPARED[why]}"
                )
            if not why and not DIGEST.fullmatch(digest):
                raise RunError(
                    f"FP5246 the server's record of {record.label} has no digest of the model of {name}, which all "
                    "clients compare"
                )
        if self.parts.secure_sum is not None and (record.base or any(map(self._explain_uncompared, legal.values()))):
            raise RunError(
                f"FP5247 clients can't compare the model of {record.label}, so a server could give each of them "
                f"another one; this client takes part in no {self.parts.secure_sum.name} of it"
            )

    def format_state_name(self, instruction: Instruction) -> str:
        """Return the name under which a record has the digest of what an instruction leads to."""
        return format_state_name(instruction.form, is_newcomer(instruction))

    def smaller_states(self, instruction: Instruction, record: RoundRecord) -> dict[int, str]:
        """Return the recorded digests of states of smaller ranks than a client's own, by rank."""
        own, newcomer = instruction.form, is_newcomer(instruction)
        if own is None or not self.mixed:
            return {}
        names = {rank: format_state_name(self.layout.get_form(rank), newcomer) for rank in range(1, own.rank)}
        found = {rank: record.states[name] for rank, name in names.items() if name in record.states}
        return {rank: digest for rank, digest in found.items() if DIGEST.fullmatch(digest)}

    def _list_legal_states(self) -> dict[str, AdapterShape | None]:
        """Return all states that a record may have, by name, with their forms."""
        whole = get_client_form(self.parts.strategy, self.layout)
        forms: list[AdapterShape | None] = [whole]
        if whole is not None and self.mixed:
            forms = [self.layout.get_form(rank) for rank in range(1, whole.rank + 1)]
        kept = (False, True) if self.parts.strategy.list_private(self.layout) else (False,)
        return {format_state_name(form, newcomer): form for form in forms for newcomer in kept}

    def _describe_forms(self) -> str:
        whole = get_client_form(self.parts.strategy, self.layout)
        if whole is None:
            return "legal is the whole model: it has no ranks"
        if not self.mixed:
            return f"legal is {format_form(whole)}, for all clients"
        return f"legal are ranks 1 to {whole.rank}, each with alpha {whole.scale:g} times the rank"

    def _explain_uncompared(self, form: AdapterShape | None) -> str:
        return explain_uncompared(self.parts.strategy, self.layout, self._codec, form, self.seed, 1)

    # -------------------------------------------------------------------------------------------------- instructions

    def check(self, instruction: Instruction) -> None:
        """Refuse an instruction that the settings do not lead to.

        Raises:
            PayloadError: names the field, and what is legal.
        """
        self._check_task(instruction)
        if instruction.kind in ("train", "evaluate"):
            self._check_form(instruction)
            self._check_tensors(instruction)
        if self.parts.secure_sum is not None:
            self._check_summed(instruction)

    def _check_task(self, instruction: Instruction) -> None:
        """Refuse another task than that of the client in this round: the settings and the client's id fix it."""
        legal = 0
        if self.tasks is not None and instruction.kind == "train":
            legal = 1 + self.tasks.get_client_task(instruction.client, instruction.round, self.seed)
        if instruction.task != legal:
            raise PayloadError(
                f"FP6495 the server asks client {instruction.client} for task {instruction.task} in round "
                f"{instruction.round}; by the settings it is {legal or 'no task of several'}"
            )

    def _check_form(self, instruction: Instruction) -> None:
        whole, rank, alpha = get_client_form(self.parts.strategy, self.layout), instruction.rank, instruction.alpha
        if whole is None:
            legal = rank == 0 and alpha == 0
        else:
            most = min(self.rank or whole.rank, whole.rank)
            legal = 1 <= rank <= most if self.mixed else rank == whole.rank
            legal = legal and alpha == self.layout.get_form(rank).alpha
        if not legal:
            joined = f"; this client has joined with rank {self.rank}" if self.rank else ""
            raise PayloadError(
                f"FP6176 the server asks for an adapter of rank {rank} and alpha {alpha:g}; "
                f"{self._describe_forms()}{joined}"
            )

    def _check_tensors(self, instruction: Instruction) -> None:
        names, strategy = self.layout.names, self.parts.strategy
        private = {names[i] for i in instruction.private}
        if private != strategy.list_private(self.layout):
            raise PayloadError(
                f"FP6177 the server asks for {len(private)} tensors that stay with clients, but the strategy "
                f"keeps {len(strategy.list_private(self.layout))} others"
            )
        trained = {names[i] for i in instruction.trained} or set(names)
        if instruction.kind == "train" and trained != strategy.list_trained(self.layout, instruction.round):
            raise PayloadError(
                f"FP6178 the server asks to train {len(trained)} tensors in round {instruction.round}, and the "
                "strategy trains others in it"
            )

    def _check_summed(self, instruction: Instruction) -> None:
        """Refuse what could differ between clients in a sum, because it would reveal this client's update."""
        secure = self.parts.secure_sum
        assert secure is not None
        if instruction.kind == "evaluate":
            raise PayloadError(
                "FP6179 the server asks a client to evaluate without masks, which its settings do not allow"
            )
        legal = SUMMED
        if instruction.kind != "train":
            legal = legal - {"learning_rate", "trained", "rank", "alpha", "told", "payload", "acknowledged"}
        elif not (self.parts.drift.needs_shares or getattr(self.parts.mechanism, "whitens", False)):
            legal = legal - {"told"}
        for field in dataclasses.fields(Instruction):
            default = b"" if field.name == "payload" else field.default
            if field.name not in legal and getattr(instruction, field.name) != default:
                raise PayloadError(
                    f"FP6180 the server gives this client {field.name}={getattr(instruction, field.name)!r:.40} in a "
                    f"sum under masks; under {secure.name} all clients do the same, which leaves it at {default!r}"
                )
        if instruction.kind == "train" and instruction.recorded and not instruction.released:
            raise PayloadError(f"FP6181 under {secure.name} a client trains on no model but the recorded one")

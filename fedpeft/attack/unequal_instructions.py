"""Attacks of a server that sends one client something else than the others: another shape, other work, another model.

Each aims at the victim's update. It makes the updates of the others zero, so that the sum is the victim's update. The
server signs whatever its attack needs.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fedpeft.attack.outcome import VICTIM, Outcome
from fedpeft.communication.broadcast_digests import BroadcastDigests, compute_digest, format_form
from fedpeft.communication.decoding import decode
from fedpeft.communication.messages import Instruction
from fedpeft.deployment.identity.signing import SignedStatement
from fedpeft.deployment.transcript.announcements import Announcements
from fedpeft.deployment.wire.gateway import Gateway
from fedpeft.deployment.wire.session import Session
from fedpeft.peft.adapter import AdapterShape
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.rounds.dispatch import Broadcast

if TYPE_CHECKING:
    from fedpeft.attack.stage import AttackStage

Sent = Callable[[Broadcast, Instruction], Instruction]
Recorded = Callable[[Broadcast, BroadcastDigests], BroadcastDigests]


def other_alpha(stage: AttackStage) -> Outcome:
    """Send the others another alpha, and for it a model that does not learn; one record contains both."""
    return _tell_other_form(stage, lambda form: replace(form, alpha=form.alpha * 1.000001))


def no_rank(stage: AttackStage) -> Outcome:
    """Send the others a model without ranks that does not learn; one record contains both."""
    return _tell_other_form(stage, lambda _: None)


def no_digest(stage: AttackStage) -> Outcome:
    """Record no digest of the model, and send the others one that does not learn."""
    _tell(stage, _stop_learning, lambda _, digests: replace(digests, states=dict.fromkeys(digests.states, "")))
    return stage.run()


def other_model(stage: AttackStage) -> Outcome:
    """Record the model, and send the others one that does not learn."""
    _tell(stage, _stop_learning, lambda _, digests: digests)
    return stage.run()


def one_step(stage: AttackStage) -> Outcome:
    """Send the others a single local step, in which factors that start as zeros do not learn."""
    _tell(stage, lambda _, instruction: replace(instruction, steps=1), lambda _, digests: digests)
    return stage.run()


def no_rate(stage: AttackStage) -> Outcome:
    """Send the others a learning rate of almost zero, which the record does not contain."""
    _tell(stage, lambda _, instruction: replace(instruction, learning_rate=1e-30), lambda _, digests: digests)
    return stage.run()


def two_records(stage: AttackStage) -> Outcome:
    """Sign two histories: the victim's contains the model, and the others' one that does not learn."""
    victim = stage.names[VICTIM]
    _tell(stage, _stop_learning, lambda _, digests: digests)
    second: dict[Gateway, Gateway] = {}

    def replace_announce(announce: Callable[..., str]) -> Callable[..., str]:
        def announce_both(said: Announcements, digests: BroadcastDigests) -> str:
            assert stage.federation is not None
            gateway = stage.federation.gateway
            if gateway not in second:
                second[gateway] = copy.copy(gateway)
                file = stage.folder / "others.jsonl"
                chain, given = said._chain, (said._cohort, said._signer)
                second[gateway].announcements = Announcements(file, chain.run, chain.settings, *given)
            others = second[gateway].announcements
            assert others is not None
            digest = announce(said, digests)
            announce(others, _replace_states(digests, stage) if digests.kind == "train" else digests)
            return digest

        return announce_both

    def replace_stream(stream: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        def stream_history(gateway: Gateway, session: Session, *given: Any) -> AsyncIterator[Any]:
            if session.member.name != victim:
                return stream(_SecondHistory(gateway, second), session, *given)
            return stream(gateway, session, *given)

        return stream_history

    def replace_about(about: Callable[..., SignedStatement]) -> Callable[..., SignedStatement]:
        def select_statement(said: Announcements, client: str, instruction: Instruction) -> SignedStatement:
            for gateway, other in second.items():
                if client != victim and said is gateway.announcements and other.announcements is not None:
                    return about(other.announcements, client, instruction)
            return about(said, client, instruction)

        return select_statement

    stage.replace(Coordinator, "take_keys", skip_key_check)
    stage.replace(Announcements, "announce", replace_announce)
    stage.replace(Announcements, "create_statement", replace_about)
    stage.replace(Gateway, "_stream", replace_stream)
    return stage.run()


def skip_key_check(take_keys: Callable[..., None]) -> Callable[..., None]:
    """Return a method that lets the server pass on keys that it can't verify."""

    def take_unchecked(coordinator: Coordinator, client: int, content: bytes) -> None:
        coordinator.roster = None
        take_keys(coordinator, client, content)

    return take_unchecked


class _SecondHistory:
    """A gateway that announces the second history as soon as it exists."""

    def __init__(self, gateway: Gateway, second: Mapping[Gateway, Gateway]) -> None:
        """Store the gateway and the second gateways."""
        self._gateway, self._second = gateway, second

    def __getattr__(self, name: str) -> Any:
        """Return the gateway's attribute, or the announcements of the second history."""
        if name == "announcements" and self._gateway in self._second:
            return self._second[self._gateway].announcements
        return getattr(self._gateway, name)


# ------------------------------------------------------------------------------------------------------ implementation


def _tell(stage: AttackStage, sent: Sent, recorded: Recorded) -> None:
    """Change the instructions of all clients but the victim in training rounds, and all records of these rounds."""

    def replace_instruction(instruction: Callable[..., Instruction]) -> Callable[..., Instruction]:
        def change_instruction(dispatch: Broadcast, kind: str, client: int, *given: Any, **more: Any) -> Instruction:
            honest = instruction(dispatch, kind, client, *given, **more)
            return sent(dispatch, honest) if kind == "train" and client != VICTIM else honest

        return change_instruction

    def replace_create(create: Callable[..., BroadcastDigests]) -> Callable[..., BroadcastDigests]:
        def change_digests(dispatch: Broadcast, kind: str, *given: Any, **more: Any) -> BroadcastDigests:
            honest = create(dispatch, kind, *given, **more)
            stage.silent = compute_digest(_decode_zero_model(dispatch))
            return recorded(dispatch, honest) if kind == "train" else honest

        return change_digests

    stage.replace(Broadcast, "create_instruction", replace_instruction)
    stage.replace(Broadcast, "create_digests", replace_create)


def _tell_other_form(stage: AttackStage, change: Callable[[AdapterShape], AdapterShape | None]) -> Outcome:
    def change_shape(instruction: Instruction) -> AdapterShape | None:
        return change(instruction.form) if instruction.form else AdapterShape(1, 1.0)

    def change_instruction(dispatch: Broadcast, instruction: Instruction) -> Instruction:
        form = change_shape(instruction)
        rank, alpha = (form.rank, form.alpha) if form else (0, 0.0)
        return replace(_stop_learning(dispatch, instruction), rank=rank, alpha=alpha)

    def change_digests(dispatch: Broadcast, digests: BroadcastDigests) -> BroadcastDigests:
        form = dispatch.form(VICTIM)
        name = format_form(change(form) if form else AdapterShape(1, 1.0))
        return replace(digests, states={**digests.states, name: compute_digest(_decode_zero_model(dispatch))})

    _tell(stage, change_instruction, change_digests)
    return stage.run()


def _replace_states(digests: BroadcastDigests, stage: AttackStage) -> BroadcastDigests:
    return replace(digests, states=dict.fromkeys(digests.states, stage.silent))


def _stop_learning(dispatch: Broadcast, instruction: Instruction) -> Instruction:
    return replace(instruction, payload=_encode_zero_model(dispatch))


def _encode_zero_model(dispatch: Broadcast) -> bytes:
    """Return the payload of a model whose factors are zero, so that neither of them has a gradient."""
    setup = dispatch.setup
    state = {n: torch.zeros_like(t) if "lora_" in n else t for n, t in dispatch.progress.adapter.items()}
    return setup.downlink.encode(state, shapes=setup.layout.shapes)


def _decode_zero_model(dispatch: Broadcast) -> dict[str, torch.Tensor]:
    return dict(decode(_encode_zero_model(dispatch), dispatch.setup.layout.shapes))

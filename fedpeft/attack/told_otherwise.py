"""Attacks of a server that tells one client otherwise than the others: another form, other work, another model.

Each aims at the victim's update. It brings the updates of the others to zero, so that the sum is the victim's update.
The server signs whatever its attack needs.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from fedpeft.attack.stage import VICTIM, AttackStage, Outcome
from fedpeft.communication.decoding import decode
from fedpeft.communication.messages import Instruction
from fedpeft.communication.release import Release, compute_digest, format_form
from fedpeft.deployment.identity.signing import SignedStatement
from fedpeft.deployment.transcript.announcements import Announcements
from fedpeft.deployment.wire.gateway import Gateway
from fedpeft.deployment.wire.session import Session
from fedpeft.peft.adapter import AdapterShape
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.rounds.dispatch import Broadcast

Sent = Callable[[Broadcast, Instruction], Instruction]
Recorded = Callable[[Broadcast, Release], Release]


def other_alpha(stage: AttackStage) -> Outcome:
    """Give the others another alpha, and for it a model that does not learn; one record has both."""
    return _tell_other_form(stage, lambda form: replace(form, alpha=form.alpha * 1.000001))


def no_rank(stage: AttackStage) -> Outcome:
    """Give the others a model without ranks that does not learn; one record has both."""
    return _tell_other_form(stage, lambda _: None)


def no_digest(stage: AttackStage) -> Outcome:
    """Record no digest of the model, and give the others one that does not learn."""
    _tell(stage, _stop_learning, lambda _, release: replace(release, states=dict.fromkeys(release.states, "")))
    return stage.run()


def other_model(stage: AttackStage) -> Outcome:
    """Record the model, and give the others one that does not learn."""
    _tell(stage, _stop_learning, lambda _, release: release)
    return stage.run()


def one_step(stage: AttackStage) -> Outcome:
    """Give the others a single local step, in which factors that begin with zeros do not learn."""
    _tell(stage, lambda _, instruction: replace(instruction, steps=1), lambda _, release: release)
    return stage.run()


def no_rate(stage: AttackStage) -> Outcome:
    """Give the others a learning rate of next to zero, which the record does not have."""
    _tell(stage, lambda _, instruction: replace(instruction, learning_rate=1e-30), lambda _, release: release)
    return stage.run()


def two_records(stage: AttackStage) -> Outcome:
    """Sign two histories: the victim's has the model, the others' one that does not learn."""
    victim = stage.names[VICTIM]
    _tell(stage, _stop_learning, lambda _, release: release)
    second: dict[Gateway, Gateway] = {}

    def announced(announce: Callable[..., str]) -> Callable[..., str]:
        def both(said: Announcements, release: Release) -> str:
            assert stage.federation is not None
            gateway = stage.federation.gateway
            if gateway not in second:
                second[gateway] = copy.copy(gateway)
                file = stage.folder / "others.jsonl"
                chain, given = said._chain, (said._cohort, said._signer)
                second[gateway].announcements = Announcements(file, chain.run, chain.settings, *given)
            others = second[gateway].announcements
            assert others is not None
            digest = announce(said, release)
            announce(others, _replace_states(release, stage) if release.kind == "train" else release)
            return digest

        return both

    def streamed(stream: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        def of_two(gateway: Gateway, session: Session, *given: Any) -> AsyncIterator[Any]:
            if session.member.name != victim:
                return stream(_Late(gateway, second), session, *given)
            return stream(gateway, session, *given)

        return of_two

    def stated(about: Callable[..., SignedStatement]) -> Callable[..., SignedStatement]:
        def of_two(said: Announcements, client: str, instruction: Instruction) -> SignedStatement:
            for gateway, other in second.items():
                if client != victim and said is gateway.announcements and other.announcements is not None:
                    return about(other.announcements, client, instruction)
            return about(said, client, instruction)

        return of_two

    stage.replace(Coordinator, "take_keys", skip_key_check)
    stage.replace(Announcements, "announce", announced)
    stage.replace(Announcements, "create_statement", stated)
    stage.replace(Gateway, "_stream", streamed)
    return stage.run()


def skip_key_check(take_keys: Callable[..., None]) -> Callable[..., None]:
    """Let the server pass on keys that it cannot verify."""

    def taken(coordinator: Coordinator, client: int, content: bytes) -> None:
        coordinator.roster = None
        take_keys(coordinator, client, content)

    return taken


class _Late:
    """A gateway that announces the second history as soon as there is one."""

    def __init__(self, gateway: Gateway, second: Mapping[Gateway, Gateway]) -> None:
        self._gateway, self._second = gateway, second

    def __getattr__(self, name: str) -> Any:
        if name == "announcements" and self._gateway in self._second:
            return self._second[self._gateway].announcements
        return getattr(self._gateway, name)


# ------------------------------------------------------------------------------------------------------- how it is done


def _tell(stage: AttackStage, sent: Sent, recorded: Recorded) -> None:
    """Let all but the victim be sent something else in rounds of training, and all records be something else."""

    def instructed(instruction: Callable[..., Instruction]) -> Callable[..., Instruction]:
        def otherwise(dispatch: Broadcast, kind: str, client: int, *given: Any, **more: Any) -> Instruction:
            honest = instruction(dispatch, kind, client, *given, **more)
            return sent(dispatch, honest) if kind == "train" and client != VICTIM else honest

        return otherwise

    def released(release: Callable[..., Release]) -> Callable[..., Release]:
        def otherwise(dispatch: Broadcast, kind: str, *given: Any, **more: Any) -> Release:
            honest = release(dispatch, kind, *given, **more)
            stage.silent = compute_digest(_decode_zero_model(dispatch))
            return recorded(dispatch, honest) if kind == "train" else honest

        return otherwise

    stage.replace(Broadcast, "create_instruction", instructed)
    stage.replace(Broadcast, "release", released)


def _tell_other_form(stage: AttackStage, change: Callable[[AdapterShape], AdapterShape | None]) -> Outcome:
    def form_of(instruction: Instruction) -> AdapterShape | None:
        return change(instruction.form) if instruction.form else AdapterShape(1, 1.0)

    def sent(dispatch: Broadcast, instruction: Instruction) -> Instruction:
        form = form_of(instruction)
        rank, alpha = (form.rank, form.alpha) if form else (0, 0.0)
        return replace(_stop_learning(dispatch, instruction), rank=rank, alpha=alpha)

    def recorded(dispatch: Broadcast, release: Release) -> Release:
        form = dispatch.form(VICTIM)
        name = format_form(change(form) if form else AdapterShape(1, 1.0))
        return replace(release, states={**release.states, name: compute_digest(_decode_zero_model(dispatch))})

    _tell(stage, sent, recorded)
    return stage.run()


def _replace_states(release: Release, stage: AttackStage) -> Release:
    return replace(release, states=dict.fromkeys(release.states, stage.silent))


def _stop_learning(dispatch: Broadcast, instruction: Instruction) -> Instruction:
    return replace(instruction, payload=_encode_zero_model(dispatch))


def _encode_zero_model(dispatch: Broadcast) -> bytes:
    """Return a model whose factors are zero: neither of them has a gradient."""
    setup = dispatch.setup
    state = {n: torch.zeros_like(t) if "lora_" in n else t for n, t in dispatch.progress.adapter.items()}
    return setup.downlink.encode(state, shapes=setup.layout.shapes)


def _decode_zero_model(dispatch: Broadcast) -> dict[str, torch.Tensor]:
    return dict(decode(_encode_zero_model(dispatch), dispatch.setup.layout.shapes))

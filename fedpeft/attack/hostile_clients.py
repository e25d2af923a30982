"""Attacks of one admitted client, which tries to stop the others' rounds or to spoil their model.

It learns nothing, because it receives what all clients receive.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fedpeft.attack.hands import LOW_ORDER, sign_keys
from fedpeft.attack.lies import create_lie
from fedpeft.attack.outcome import Outcome
from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.client.edge import EdgeClient
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.privacy.secure_sum import shamir, words
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import Contribution

if TYPE_CHECKING:
    from fedpeft.attack.stage import Answer, AttackStage

LIAR: Final = 3
"""Id of the hostile client."""

KEYS, SHARES, VECTOR, UNMASK = 1, 2, 3, 5
"""Steps of a secure sum (`fedpeft.privacy.secure_sum.member`)."""

ALWAYS: Final = range(100)
"""Rounds in which the client lies."""


def lying_norm(stage: AttackStage) -> Outcome:
    """State a huge norm of its update in each round."""
    return _lie(stage, "norm: huge")


def lying_weight(stage: AttackStage) -> Outcome:
    """State a huge weight of its update in each round."""
    return _lie(stage, "weight: huge")


def overflowing_sum(stage: AttackStage) -> Outcome:
    """Send the largest integers in each round of training, so that the sum overflows."""
    return _lie(stage, "vector: the largest integers", range(1, 100))


def not_a_number(stage: AttackStage) -> Outcome:
    """Send an update that is not a number, through its honest software."""
    return _lie(stage, "update: not a number")


def false_shares(stage: AttackStage) -> Outcome:
    """Give false shares of the others' secrets when the masks are removed."""

    def answer(_edge: EdgeClient, instruction: Instruction, honest: Callable[[Instruction], Report]) -> Report:
        report = honest(instruction)
        if instruction.step != UNMASK or report.error:
            return report
        shares = words.read_shares(report.payload)
        false = {peer: (which, bytes(shamir.SHARE)) for peer, (which, _) in shares.items()}
        return replace(report, payload=words.write_shares(false))

    return _answer(stage, answer)


def garbage_for_shares(stage: AttackStage) -> Outcome:
    """Seal garbage for its neighbors instead of shares."""

    def answer(_edge: EdgeClient, instruction: Instruction, honest: Callable[[Instruction], Report]) -> Report:
        report = honest(instruction)
        if instruction.step != SHARES or report.error:
            return report
        sealed = words.read_sealed(report.payload)
        return replace(report, payload=words.write_sealed({p: os.urandom(len(s)) for p, s in sealed.items()}))

    return _answer(stage, answer)


def low_order_keys(stage: AttackStage) -> Outcome:
    """Advertise low-order keys, correctly signed: honest members would refuse them, and with them the sum."""

    def answer(edge: EdgeClient, instruction: Instruction, honest: Callable[[Instruction], Report]) -> Report:
        report = honest(instruction)
        secure = edge.setup.secure_sum
        if instruction.step != KEYS or report.error or secure is None:
            return report
        told = Announcement.of_bytes(instruction.said)
        run = edge.description.run + instruction.recorded
        terms = told.terms(secure, edge.config.seed, instruction.round, run)
        own = Credentials.load_client(stage.certs / "clients" / stage.names[LIAR])
        keys = sign_keys(terms, instruction.client, own, replace(words.read_keys(report.payload), mask=LOW_ORDER[0]))
        return replace(report, payload=keys.to_bytes())

    return _answer(stage, answer)


def leaves(stage: AttackStage) -> Outcome:
    """Fail in each round, after its part has arrived."""

    def answer(_edge: EdgeClient, instruction: Instruction, honest: Callable[[Instruction], Report]) -> Report:
        report = honest(instruction)
        return replace(report, payload=b"", error="gone") if instruction.step > VECTOR else report

    return _answer(stage, answer)


def garbage(stage: AttackStage) -> Outcome:
    """Send random bytes instead of each answer."""

    def answer(_edge: EdgeClient, instruction: Instruction, honest: Callable[[Instruction], Report]) -> Report:
        report = honest(instruction)
        return replace(report, payload=os.urandom(len(report.payload)))

    return _answer(stage, answer)


def _lie(stage: AttackStage, kind: str, rounds: range = ALWAYS) -> Outcome:
    stage.replace(Contribution, "integers", create_lie(kind, LIAR, rounds))
    return _answer(stage, lambda _edge, instruction, honest: honest(instruction))


def _answer(stage: AttackStage, answer: Answer) -> Outcome:
    stage.hostile[stage.names[LIAR]] = answer
    return stage.run()

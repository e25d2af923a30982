"""Attacks of a server within secure sums: false announcements, split views and repeated requests.

Colluding clients are members of the federation whose keys the server holds, so no roster excludes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedpeft.attack.colluding import Shares, SplitView, remove_masks
from fedpeft.attack.hands import LOW_ORDER, RemoteMember, SumAttacker, take_over_round
from fedpeft.attack.outcome import VICTIM, Outcome
from fedpeft.communication.messages import Instruction
from fedpeft.deployment.server.grid import StoppedError
from fedpeft.privacy.secure_sum import words
from fedpeft.privacy.secure_sum.collusion import count_tolerated
from fedpeft.privacy.secure_sum.contribution import Total
from fedpeft.privacy.secure_sum.coordinator import VoidError
from fedpeft.privacy.secure_sum.masks import unpack
from fedpeft.rounds.masked_sum import MaskedSum

if TYPE_CHECKING:
    from fedpeft.attack.stage import AttackStage

ANNOUNCED: Final = 5
"""Number of clients that the attacker announces."""


def reading_along(stage: AttackStage) -> Outcome:
    """Follow the protocol, and read all that arrives."""
    return stage.run()


# ---------------------------------------------------------------------------------------------------- colluding clients


def as_many_as_tolerated(stage: AttackStage) -> Outcome:
    """Show two groups of honest clients different survivors, with as many colluding clients as the sum tolerates."""
    return _split_view(stage, 0)


def one_more(stage: AttackStage) -> Outcome:
    """Do the same with one more colluding client than the sum tolerates."""
    return _split_view(stage, 1)


def _split_view(stage: AttackStage, more: int) -> Outcome:
    def work(hands: SumAttacker) -> None:
        colluding = count_tolerated(hands.terms) + more
        near = range(1, hands.terms.neighbor_count - colluding + 1)
        ids = [*hands.work]
        confederates = {i: hands.create_confederate(i) for i in ids[len(ids) - colluding :]}
        outsiders = {i: RemoteMember(hands, i) for i in ids if i > near[-1] and i not in confederates}
        if more:  # one outsider suffices
            outsiders = dict([*outsiders.items()][:1])
        given = (
            (VICTIM, RemoteMember(hands, VICTIM)),
            {i: RemoteMember(hands, i) for i in near},
            outsiders,
            confederates,
        )
        _read(hands, SplitView(hands.terms, *given))

    take_over_round(stage, 1, ANNOUNCED, work)
    return stage.run()


def invented_clients(stage: AttackStage) -> Outcome:
    """Surround the victim with clients that the authority's key created, and that no roster contains."""

    def work(hands: SumAttacker) -> None:
        confederates = {i: hands.invent_member(i) for i in range(1, ANNOUNCED)}
        _read(hands, SplitView(hands.terms, (VICTIM, RemoteMember(hands, VICTIM)), {}, {}, confederates))

    take_over_round(stage, 1, ANNOUNCED, work)
    return stage.run()


def expired_certificate(stage: AttackStage) -> Outcome:
    """Surround the victim with clients whose certificates have expired, and whose keys were stolen since."""

    def work(hands: SumAttacker) -> None:
        confederates = {i: hands.invent_member(i, -0.5) for i in range(1, ANNOUNCED)}
        _read(hands, SplitView(hands.terms, (VICTIM, RemoteMember(hands, VICTIM)), {}, {}, confederates))

    take_over_round(stage, 1, ANNOUNCED, work)
    return stage.run()


def _read(hands: SumAttacker, view: SplitView) -> None:
    if (vector := view.run()) is not None:
        hands.hold(vector)


# -------------------------------------------------------------------------------------------------------- small cohorts


def sum_of_one(stage: AttackStage) -> Outcome:
    """Announce a sum of one client, the victim."""

    def work(hands: SumAttacker) -> None:
        hands.told = replace(hands.told, clients=1)
        hands.ask(VICTIM, 1, hands.told.to_bytes())

    take_over_round(stage, 1, ANNOUNCED, work)
    return stage.run()


def alone_in_a_cohort(stage: AttackStage) -> Outcome:
    """Announce a sum of five, and show the victim only one colluding client."""

    def work(hands: SumAttacker) -> None:
        liar = hands.create_confederate(len(stage.names) - 1)
        _read(hands, SplitView(hands.terms, (VICTIM, RemoteMember(hands, VICTIM)), {}, {}, {liar.client: liar}))

    take_over_round(stage, 1, ANNOUNCED, work)
    return stage.run()


# --------------------------------------------------------------------------------------------------------------- keys


def low_order_keys(stage: AttackStage) -> Outcome:
    """Show the victim low-order keys instead of the honest clients' own, so that the attacker can compute the masks."""

    def work(hands: SumAttacker) -> None:
        keys = {i: words.read_keys(RemoteMember(hands, i).keys()) for i in hands.work}
        low = {i: replace(own, mask=LOW_ORDER[i % 4]) for i, own in keys.items() if i != VICTIM}
        hands.ask(VICTIM, 2, words.write_peers(low))

    take_over_round(stage, 1, ANNOUNCED, work)
    return stage.run()


# --------------------------------------------------------------------------------------------------- repeated requests


@dataclass(frozen=True)
class HalfOpenSum:
    """A sum after its first two steps, in the server's view; all values are by client.

    Attributes:
        members: the clients.
        keys: the keys that they advertised.
        others: the ids of their peers.
        sealed: their shares by peer, which only the peer can open.
    """

    members: dict[int, RemoteMember]
    keys: dict[int, words.Keys]
    others: dict[int, list[int]]
    sealed: dict[int, dict[int, bytes]]

    def ask_vector(self, client: int, peers: Sequence[int]) -> bytes:
        """Return a client's masked vector, given the shares that these peers sealed for it."""
        return self.members[client].add(words.write_sealed({p: self.sealed[p][client] for p in peers}))


def open_sum(hands: SumAttacker) -> HalfOpenSum:
    """Take the first two steps of a sum with the announced clients."""
    ids = [*hands.work][:ANNOUNCED]
    members = {i: RemoteMember(hands, i) for i in ids}
    keys = {i: words.read_keys(member.keys()) for i, member in members.items()}
    others = {i: [peer for peer in ids if peer != i] for i in ids}
    sealed = {i: words.read_sealed(m.shares_for(words.write_peers({p: keys[p] for p in others[i]})))
              for i, m in members.items()}  # fmt: skip
    return HalfOpenSum(members, keys, others, sealed)


def survivors_twice(stage: AttackStage) -> Outcome:
    """Let all sign that all survive, and after a restart that the victim does not, to get both of its secrets."""

    def work(hands: SumAttacker) -> None:
        opened = open_sum(hands)
        keys, others = opened.keys, opened.others
        masked = {i: opened.ask_vector(i, others[i]) for i in opened.members}
        shares: Shares = {}
        for survivors in ([*opened.members], others[VICTIM]):
            told = words.write_ids(survivors)
            signed = {i: hands.try_step(i, 4, told) for i in survivors}
            for i in others[VICTIM]:
                heard = words.write_witnesses({p: by for p in others[i] if (by := signed.get(p))})
                for peer, (which, share) in words.read_shares(hands.try_step(i, 5, heard) or b"").items():
                    if peer == VICTIM:
                        shares[i, which] = share
        vector = unpack(masked[VICTIM], hands.terms.length, hands.terms.bits)
        if (read := remove_masks(hands.terms, VICTIM, vector, shares, keys, others[VICTIM])) is not None:
            hands.hold(read)

    take_over_round(stage, 1, ANNOUNCED, work)
    return stage.run()


def vector_twice(stage: AttackStage) -> Outcome:
    """Request the victim's vector again with fewer neighbors: the difference reveals their masks."""

    def work(hands: SumAttacker) -> None:
        opened = open_sum(hands)
        near = opened.others[VICTIM]
        for peers in (near, near[1:]):
            opened.ask_vector(VICTIM, peers)

    take_over_round(stage, 1, ANNOUNCED, work)
    return stage.run()


def old_task(stage: AttackStage) -> Outcome:
    """Request a sum of round 1 again in round 2."""

    def work(hands: SumAttacker) -> None:
        hands.ask(VICTIM, 1, hands.told.to_bytes(), round_number=1)

    take_over_round(stage, 2, ANNOUNCED, work)
    return stage.run()


def second_sum(stage: AttackStage) -> Outcome:
    """Form the sum of a round, and the sum without the victim: the difference is the victim's update."""
    stage.replace(
        MaskedSum,
        "compute_total",
        lambda of: lambda masked, asked, *given: _form_both(stage, of, masked, asked, *given),
    )
    return stage.run()


def _form_both(
    stage: AttackStage, of: Callable[..., Total], masked: MaskedSum, asked: Sequence[Instruction], *given: Any
) -> Total:
    first = of(masked, asked, *given)
    if masked.round:
        again = MaskedSum(masked.clients, masked.secure, masked.seed, masked.round, masked.size, masked.numbers,
                          masked.clip)  # fmt: skip
        second = of(again, [i for i in asked if i.client != VICTIM], *given)
        stage.held[masked.round].append(first.vector - second.vector)
    return first


def restart_server(stage: AttackStage) -> Outcome:
    """Form a sum, forget it in a restart, and form the sum without the victim under the same round's number."""
    sums: list[np.ndarray] = []

    def change(of: Callable[..., Total]) -> Callable[..., Total]:
        def attack_sum(masked: MaskedSum, asked: Sequence[Instruction], *given: Any) -> Total:
            if not masked.round:
                return of(masked, asked, *given)
            if not sums:
                sums.append(of(masked, asked, *given).vector)
                raise StoppedError
            total = of(masked, [i for i in asked if i.client != VICTIM], *given)
            stage.held[masked.round].append(sums[0] - total.vector)
            return total

        return attack_sum

    stage.replace(MaskedSum, "compute_total", change)
    stage.run()
    shutil.rmtree(stage.folder / "server" / "secure_sum", ignore_errors=True)
    return stage.run()


def void_round(stage: AttackStage) -> Outcome:
    """Form the sum of a round, declare it void, and leave the victim out of the next round on the same model."""
    sums: list[np.ndarray] = []

    def change(of: Callable[..., Total]) -> Callable[..., Total]:
        def attack_sum(masked: MaskedSum, asked: Sequence[Instruction], *given: Any) -> Total:
            if not masked.round:
                return of(masked, asked, *given)
            if not sums:
                sums.append(of(masked, asked, *given).vector)
                raise VoidError("FP6187 the attacker voids this sum")
            total = of(masked, [i for i in asked if i.client != VICTIM], *given)
            stage.held[masked.round - 1].append(sums[0] - total.vector)
            return total

        return attack_sum

    stage.replace(MaskedSum, "compute_total", change)
    return stage.run()

"""Real clients that share the noise of their sums: what each adds, what its ledger says, and what it refuses."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fedpeft.clients.masking import FILE, Masking

from fedpeft.communication.messages import Instruction
from fedpeft.privacy.accountant import epsilon
from fedpeft.privacy.client_protection import OWN
from fedpeft.privacy.engine import KEY, LEDGER
from fedpeft.privacy.noise import read_key
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.contribution import BESIDE
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.neighbours import graph
from fedpeft.privacy.skellam import draw_skellam
from tests.conftest import SilentObserver
from tests.here import Federation
from tests.refusals import has_error, refuses

SHARED = {"clients": 3, "head": "zero", "local_work": "epochs(1.0)", "batch_size": 1, "rounds": 2,
          "optimizer": "sgd(head_rate=1.0, schedule=constant)",
          "privacy": "distributed_dp(noise_multiplier=2, rows=1000000)"}  # fmt: skip
"""So rarely does a row join that a client's vector is its share of noise alone."""


def book(made, k):
    return [json.loads(line) for line in (made.folder / f"edge-{k}" / LEDGER).read_text().splitlines()[1:]]


class Killed(BaseException):
    """A client is."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record a run in which client 0 is killed once between its charge and its answer, with each contribution."""
    folder = tmp_path_factory.mktemp("shared")
    plain, vector, left = {}, Member.vector, [(1, 0)]

    def kept(self, sealed, numbers):
        plain[len([k for k in plain if k[1] == self.client]) + 1, self.client] = numbers
        return vector(self, sealed, numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Member, "vector", kept)
        made = Federation(folder, SilentObserver(), **SHARED)
        handle, add = made.server.edges[0].handle, Masking.add

        def dying(self, instruction, given):
            if (instruction.round, instruction.client) in left:
                left.clear()
                raise Killed
            return add(self, instruction, given)

        def again(instruction):
            try:
                return handle(instruction)
            except Killed:
                return handle(instruction)

        patch.setattr(Masking, "add", dying)
        patch.setattr(made.server.edges[0], "handle", again)
        made.run()
    assert not left
    return SimpleNamespace(made=made, plain=plain)


def test_each_adds_its_share_from_its_own_key(recorded):
    made, sums = recorded.made, recorded.made.server.setup.secure_sum
    keys = [read_key(made.folder / f"edge-{k}" / KEY) for k in range(3)]
    assert len({key.secret for key in (*keys, read_key(made.folder / "server" / KEY))}) == 4
    size, total = sums.later.size, 0
    for round_number in (1, 2):
        for k, key in enumerate(keys):
            stream = key.stream("share of noise", round_number, 0, k)
            stream.random(size)  # of rounding
            noise = draw_skellam(stream, sums.later.share(3, 0), size)
            np.testing.assert_array_equal(recorded.plain[round_number, k][:size], noise % 2**16)
            total = total + noise if round_number == 1 else total
    assert total.var() == pytest.approx(sums.later.variance, rel=5 * (2 / size) ** 0.5)  # five standard errors


def test_both_books_hold_each_sum_once_also_of_a_client_that_was_killed_after_its_charge(recorded):
    made = recorded.made
    engine = made.server.protection
    event = engine.mechanism.charges(engine.exposure, [0], engine.noise_multiplier)[0][0]
    for k in range(3):
        home = made.folder / f"edge-{k}"
        assert [(line["round"], line["charges"]) for line in book(made, k)] == [
            (round_number, [[OWN, event.noise, event.rate, 1, event.rounding]]) for round_number in (1, 2)
        ]
        assert engine.ledger.spent[k] == {event: 2}
        assert {stat.S_IMODE((home / name).stat().st_mode) for name in (KEY, LEDGER)} == {0o600}
        assert made.server.edges[k].protection.compute_epsilon() == epsilon({event: 2}, engine.delta)
    assert engine.summary()["epsilon"] == made.server.edges[0].protection.compute_epsilon()


def test_a_server_hears_no_number_of_a_single_client(recorded):
    for report in recorded.made.server.direct.reports:
        assert (report.rows, report.steps, report.loss, report.seconds, report.used) == (0,) * 5
        assert not report.error
    assert [member.rows for member in recorded.made.server.roster.members] == [1] * 3


# --------------------------------------------------------------------------------------------------------- its budget


def test_a_client_takes_part_as_often_as_its_own_limit_allows_and_the_others_go_on(tmp_path):
    """Client 0 declares a limit of one sum and is not asked twice; client 1 has spent more than the server knows of."""
    given = {"clients": 5, "rounds": 3, "batch_size": 60, "privacy": "distributed_dp(noise_multiplier=2, rows=310)"}
    made = Federation(tmp_path, SilentObserver(), **SHARED | given)
    plain = made.server.edges[0].protection
    event, _ = plain.compute_cost()
    one = epsilon({event: 1}, plain.delta) * 1.01
    made.options[0] = {"max_epsilon": one}
    made.server.edges[0] = made.edge(0)
    own = made.server.edges[1].protection
    own.ledger.charge(9, "elsewhere", {OWN: (event, 1)})
    mechanism = replace(own.mechanism, epsilon=epsilon({event: 2}, own.delta) * 1.01)
    own.engine.accounts = replace(own.engine.accounts, mechanism=mechanism)
    made.run()
    asked = {(i.round, i.client) for i in made.server.direct.asked}
    assert asked == {(1, k) for k in range(5)} | {(2, k) for k in range(1, 5)} | {(3, k) for k in range(2, 5)}
    [refused] = [r for r in made.server.direct.reports if r.spent]
    assert (refused.client, refused.round, refused.payload) == (1, 2, b"")
    assert [len(book(made, k)) for k in range(5)] == [1, 2, 2, 2, 2], "a sum that is void before step 3 costs nothing"
    assert made.server.protection.summary()["privacy"]["sat_out"] == [0, 1]
    assert made.server.edges[0].protection.compute_epsilon() <= one


# ------------------------------------------------------------------------------------------------- a server that lies


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "evaluate", "step": 0}, ("FP6179", "evaluate")),
        ({"kind": "prepare", "round": 0}, ("FP7034", "distributed_dp")),
        ({"step": 0}, ("FP7085", "train")),
        ({"correction": b"x"}, ("FP6180", "correction=b'x'")),
    ],
    ids=str,
)
def test_what_is_no_step_of_a_sum_is_refused_and_costs_nothing(recorded, change, says):
    plain = {"kind": "train", "round": 3, "client": 0, "payload": b"", "step": 3, "rank": 2, "alpha": 32.0}
    plain = {**plain, "rank": 0, "alpha": 0.0} if change.get("kind") == "prepare" else plain
    report = recorded.made.server.edges[0].handle(Instruction(**plain | change))
    assert has_error(report.error, *says)
    assert len(book(recorded.made, 0)) == 2


def test_asked_twice_a_client_gives_the_same_answer_or_none(recorded):
    made, asked = recorded.made, recorded.made.server.direct.asked
    reports = dict(zip(((i.round, i.step, i.client) for i in asked), made.server.direct.reports, strict=True))
    [third] = [i for i in asked if (i.round, i.step, i.client) == (2, 3, 1)]
    edge = made.edge(1)  # restarted
    assert edge.handle(third).payload == reports[2, 3, 1].payload
    [first] = [i for i in asked if (i.round, i.step, i.client) == (2, 1, 1)]
    second = replace(first, said=replace(Announcement.of_bytes(first.said), nonce=b"2" * 16).to_bytes())
    assert has_error(edge.handle(second).error, "FP6014", "2")
    assert len(book(made, 1)) == 2


def test_whoever_was_dropped_is_asked_for_no_share(recorded):
    server = recorded.made.server
    [member] = [m for m in server.roster.members if m.id == 2]
    asked = server.protection.accounts.declared().keys()
    server.roster.drop(member, "it lied")
    try:
        assert asked - server.protection.accounts.declared().keys() == {2}
    finally:
        server.roster.readmit([member.name])
    assert server.protection.accounts.declared().keys() == asked


def test_a_client_whose_noise_is_not_the_server_s_is_not_taken(recorded):
    registration = recorded.made.server.edges[0].create_registration()
    registration.terms.noise = 1.9
    with refuses("FP5162"):
        recorded.made.server._accept(registration)


def test_notes_of_a_sum_are_the_client_s_alone(recorded):
    for k in range(3):
        assert stat.S_IMODE((recorded.made.folder / f"edge-{k}" / "clients" / FILE).stat().st_mode) == 0o600


def begun(made, round_number):
    """Prepare the third step of a sum by hand, as each client is asked for it."""
    seed, secure = made.server.config.seed, made.server.setup.secure_sum
    told = Announcement(b"n" * 16, 3, secure.later.size, BESIDE, 1.0)
    terms = told.terms(secure, seed, round_number, made.server.roster.run)
    at = Coordinator(terms, graph([0, 1, 2], secure.neighbours, seed, round_number))
    for step, said, take in ((1, lambda _: told.to_bytes(), at.take_keys), (2, at.peers, at.take_sealed)):
        answers = [
            made.server.edges[k].handle(Instruction("sum", round_number, k, b"", step=step, said=said(k)))
            for k in range(3)
        ]
        for k, report in enumerate(answers):
            assert not report.error
            take(k, report.payload)
    trained = next(i for i in reversed(made.server.direct.asked) if i.kind == "train")
    return [replace(trained, client=k, round=round_number, said=at.sealed_for(k), recorded="") for k in range(3)]


def test_what_is_no_step_of_a_sum_is_not_charged_and_a_sum_is_charged_once(recorded):
    """Otherwise a server could spend a budget without a release.

    This must be the last test of this run, since its ledgers have one more sum from here on.
    """
    made = recorded.made
    trained = next(i for i in reversed(made.server.direct.asked) if i.kind == "train")
    for change in ({"round": 7}, {"round": 7, "said": b"junk"}, {"said": b"junk"}):
        before = [book(made, k) for k in range(3)]
        asked = replace(trained, **change)
        assert made.server.edges[asked.client].handle(asked).error
        assert [book(made, k) for k in range(3)] == before, change
    asked, before = begun(made, 8), [len(book(made, k)) for k in range(3)]
    for k, junk in ((0, b""), (1, b"junk"), (2, asked[0].said)):
        assert made.server.edges[k].handle(replace(asked[k], said=junk)).error
        assert made.server.edges[k].handle(asked[k]).error, "its part is over"
        assert len(book(made, k)) == before[k]
    asked = begun(made, 9)
    assert not made.server.edges[0].handle(asked[0]).error
    for payload in (b"no model", b"another"):
        assert made.server.edges[0].handle(replace(asked[0], payload=payload)).error
    assert len(book(made, 0)) == before[0] + 1

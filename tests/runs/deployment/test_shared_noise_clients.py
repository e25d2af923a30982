"""Real clients that share the noise of their sums: what each adds, what its ledger says, and what it refuses."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fedpeft.clients.masking import FILE, Masking, MaskPlan

from fedpeft.communication.messages import Instruction
from fedpeft.config import RunConfig
from fedpeft.deployment.certificates import Authority
from fedpeft.deployment.credentials import Credentials
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.served_settings import check
from fedpeft.deployment.shared_settings import shared_settings
from fedpeft.errors import PrivacyError
from fedpeft.privacy.accountant import epsilon
from fedpeft.privacy.client_engine import OWN
from fedpeft.privacy.engine import KEY, LEDGER
from fedpeft.privacy.noise import read_key
from fedpeft.privacy.secure_sum import words
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.certified import Identity
from fedpeft.privacy.secure_sum.contribution import BESIDE, Contribution
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.neighbours import graph
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.skellam import Grid, skellam
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
    """A run in which client 0 is killed once between its charge and its answer; and what each has added."""
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
    for round in (1, 2):
        for k, key in enumerate(keys):
            stream = key.stream("share of noise", round, 0, k)
            stream.random(size)  # of rounding
            noise = skellam(stream, sums.later.share(3, 0), size)
            np.testing.assert_array_equal(recorded.plain[round, k][:size], noise % 2**16)
            total = total + noise if round == 1 else total
    assert total.var() == pytest.approx(sums.later.variance, rel=5 * (2 / size) ** 0.5)  # five standard errors


def test_both_books_hold_each_sum_once_also_of_a_client_that_was_killed_after_its_charge(recorded):
    made = recorded.made
    engine = made.server.protection
    event = engine.mechanism.charges(engine.federation, [0], engine.noise)[0][0]
    for k in range(3):
        home = made.folder / f"edge-{k}"
        assert [(line["round"], line["charges"]) for line in book(made, k)] == [
            (round, [[OWN, event.noise, event.rate, 1, event.rounding]]) for round in (1, 2)
        ]
        assert engine.ledger.spent[k] == {event: 2}
        assert {stat.S_IMODE((home / name).stat().st_mode) for name in (KEY, LEDGER)} == {0o600}
        assert made.server.edges[k].protection.spent() == epsilon({event: 2}, engine.delta)
    assert engine.summary()["epsilon"] == made.server.edges[0].protection.spent()


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
    event, _ = plain._charge(0)
    one = epsilon({event: 1}, plain.delta) * 1.01
    made.options[0] = {"max_epsilon": one}
    made.server.edges[0] = made.edge(0)
    own = made.server.edges[1].protection
    own.ledger.charge(9, "elsewhere", {OWN: (event, 1)})
    own.mechanism = replace(own.mechanism, epsilon=epsilon({event: 2}, own.delta) * 1.01)
    made.run()
    asked = {(i.round, i.client) for i in made.server.direct.asked}
    assert asked == {(1, k) for k in range(5)} | {(2, k) for k in range(1, 5)} | {(3, k) for k in range(2, 5)}
    [refused] = [r for r in made.server.direct.reports if r.spent]
    assert (refused.client, refused.round, refused.payload) == (1, 2, b"")
    assert [len(book(made, k)) for k in range(5)] == [1, 2, 2, 2, 2], "a sum that is void before step 3 costs nothing"
    assert made.server.protection.summary()["privacy"]["sat_out"] == [0, 1]
    assert made.server.edges[0].protection.spent() <= one


def test_a_share_of_colluding_clients_is_the_larger_of_both(tmp_path):
    made = Federation(tmp_path, SilentObserver(), [{"collude": 0.5}, {}, {}], **SHARED)
    wary, other = (edge.protection for edge in made.server.edges[:2])
    assert wary.sums == other.sums, "all have one grid"
    assert wary._charge(0)[0].noise == pytest.approx(other._charge(0)[0].noise * (1 - 0.5 / 0.9) ** 0.5, rel=1e-3)


# ------------------------------------------------------------------------------------------------- a server that lies


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "evaluate", "step": 0}, "asks a client to evaluate without masks"),
        ({"kind": "prepare", "round": 0}, "sums over its rows, which distributed_dp does not protect"),
        ({"step": 0}, "without masks"),
        ({"correction": b"x"}, "gives this client correction=b'x' in a sum under masks"),
    ],
    ids=str,
)
def test_what_is_no_step_of_a_sum_is_refused_and_costs_nothing(recorded, change, says):
    plain = {"kind": "train", "round": 3, "client": 0, "payload": b"", "step": 3, "rank": 2, "alpha": 32.0}
    plain = {**plain, "rank": 0, "alpha": 0.0} if change.get("kind") == "prepare" else plain
    report = recorded.made.server.edges[0].handle(Instruction(**plain | change))
    assert says in report.error
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


def test_a_number_of_rows_that_is_not_even_the_client_s_own(tmp_path):
    with refuses("FP7020", "39", "40"):
        Federation(tmp_path, SilentObserver(), **SHARED | {"privacy": "distributed_dp(noise_multiplier=2, rows=39)"})


def test_noise_that_the_settings_name_too_small_is_charged_as_it_is(tmp_path):
    given = SHARED | {"privacy": "distributed_dp(epsilon=8, noise_multiplier=0.3, rows=150)", "batch_size": 30}
    with refuses("FP7048"):
        Federation(tmp_path, SilentObserver(), [{"max_epsilon": 2.0}, {}, {}], **given)


def test_whoever_was_dropped_is_asked_for_no_share(recorded):
    server = recorded.made.server
    [member] = [m for m in server.roster.members if m.id == 2]
    asked = server.protection._declared().keys()
    server.roster.drop(member, "it lied")
    try:
        assert asked - server.protection._declared().keys() == {2}
    finally:
        server.roster.readmit([member.name])
    assert server.protection._declared().keys() == asked


def test_a_client_whose_noise_is_not_the_server_s_is_not_taken(recorded):
    registration = recorded.made.server.edges[0].registration()
    registration.terms.noise = 1.9
    with refuses("FP5162"):
        recorded.made.server._accept(registration)


class Asked:
    """A sum by hand, of members without models, whose server says what it likes."""

    def __init__(self, folder, clients=4, announced=4, **of):
        authority = Authority(folder / "certs", 1)
        authority.ensure()
        sums = SharedNoise(neighbours=100, mechanism="distributed_dp", dropouts=0.25, later=Grid(6, 0.1, 10.0, 400.0))
        self.ids, self.sides, self.sums = list(range(clients)), [], replace(sums, **of)
        (folder / KEY).write_bytes(b"k" * 32)
        (folder / KEY).chmod(0o600)
        for k in self.ids:
            own = Credentials.of_client(authority.client(f"edge-{k}"))
            identity = Identity("run", own.key, own.certificate, own.authority)
            plan = MaskPlan("", False, 100, identity, (self.sums, folder / KEY))
            self.sides.append(Masking(plan, folder / str(k), 1))
        self.told = Announcement(b"n" * 16, announced, 6, BESIDE, 1.0)
        self.terms = self.told.terms(self.sums, 1, 1, "run")
        self.at = Coordinator(self.terms, {k: [j for j in self.ids if j != k] for k in self.ids})

    def ask(self, k, step, said=None):
        at = self.at
        says = (lambda _: self.told.to_bytes(), at.peers, at.sealed_for, lambda _: at.arrived(), at.witnesses_for)
        kind = "train" if step == 3 else "sum"
        instruction = Instruction(kind, 1, k, b"", step=step, said=says[step - 1](k) if said is None else said)
        if step != 3:
            return self.sides[k].answer(instruction)
        return self.sides[k].add(instruction, lambda _: Contribution(1.0, 1, update={}))

    def until(self, last, ids=None):
        at = self.at
        taking = (at.take_keys, at.take_sealed, at.take_vector, at.take_witness, at.take_shares)
        for step in range(1, last + 1):
            for k in self.ids if ids is None else ids:
                report = self.ask(k, step)
                assert not report.error
                taking[step - 1](k, report.payload)
        return self


def test_a_cohort_that_is_larger_on_paper_has_no_more_noise(tmp_path, monkeypatch):
    """5 are announced and 4 are there: of survivors whom a client has not seen it counts none."""
    asked = Asked(tmp_path, announced=5, dropouts=0.0)
    monkeypatch.setattr(Contribution, "integers", lambda *_: np.zeros(asked.terms.length, np.uint16))
    asked.until(3)
    for said in ([0, 1, 2, 3], [0, 1, 2, 3, 4]):
        error = asked.ask(said[-1] % 4, 4, said=words.write_ids(said)).error
        assert has_error(error, "FP6128", "4", "5")


def test_clients_that_do_not_see_each_other_count_on_nobody(tmp_path):
    asked = Asked(tmp_path, announced=12, neighbours=4)
    assert has_error(asked.ask(0, 1).error, "FP6016", "4", "12")
    assert has_error(asked.ask(0, 1).error, "FP6016", "11")


def test_members_with_other_grids_are_in_other_sums(tmp_path):
    asked = Asked(tmp_path)
    asked.sides[1].secure = replace(asked.sums, later=Grid(6, 0.1, 10.0, 300.0))
    asked.until(1)
    assert has_error(asked.ask(0, 2).error, "FP6138", "1")
    assert has_error(asked.ask(1, 2).error, "FP6138", "0")
    assert not asked.sums.grid_digest(0)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("privacy", "given", "says"),
    [
        ("distributed_dp(epsilon=8)", {}, ("FP7062",)),
        ("distributed_dp(epsilon=8, rows=300, threshold=0.6, dropouts=0)", {}, ("FP7081",)),
        ("distributed_dp(epsilon=8, rows=300)", {"serve": ServeOptions(held_out=0.2)}, ("FP7021",)),
        ("distributed_dp(epsilon=8, rows=300)", {"clients": 2}, ("FP7079", "3", "2")),
        ("distributed_dp(epsilon=8, rows=300, mask_neighbours=2)", {"clients": 5}, ("FP7024", "distributed_dp")),
        ("distributed_dp(epsilon=8, rows=300)", {"options": [{"collude": 0.9}, {}, {}]}, ("FP7058",)),
        ("distributed_dp(epsilon=8, rows=300, test_noise=True)", {"options": [{"max_epsilon": 1.0}, {}, {}]},
         ("FP7018",)),
    ],
    ids=str,
)  # fmt: skip
def test_what_would_not_protect_is_refused_in_a_sentence(federation, privacy, given, says):
    with refuses(*says) as error:
        federation(**SHARED | {"privacy": privacy} | given)
    assert "\n" not in str(error.value)


def test_what_clients_refuse_of_a_server_s_settings():
    shared_settings('privacy = "distributed_dp(epsilon=8, rows=300)"\nclients = 3')
    for privacy, says in (
        ("distributed_dp(epsilon=8)", ("FP7062",)),
        ("distributed_dp(epsilon=8, rows=300, threshold=0.6)", ("FP7081",)),
        ("distributed_dp(epsilon=8, rows=300, audit=True)", ("FP5099",)),
    ):
        with refuses(*says):
            shared_settings(f'privacy = "{privacy}"\nclients = 3')
    check(RunConfig(privacy="distributed_dp(epsilon=8, unit=clients)"), ServeOptions())


def test_a_share_of_colluding_clients_means_nothing_elsewhere(federation):
    with pytest.raises(PrivacyError, match="--collude is about clients of secure sums"):
        federation(clients=1, privacy="dp_sgd(epsilon=8)", options=[{"collude": 0.1}])


def test_notes_of_a_sum_are_the_client_s_alone(recorded):
    for k in range(3):
        assert stat.S_IMODE((recorded.made.folder / f"edge-{k}" / "clients" / FILE).stat().st_mode) == 0o600


def begun(made, round):
    """The third step of a sum by hand, as each client is asked it: the first two have been taken."""
    seed, secure = made.server.config.seed, made.server.setup.secure_sum
    told = Announcement(b"n" * 16, 3, secure.later.size, BESIDE, 1.0)
    terms = told.terms(secure, seed, round, made.server.roster.run)
    at = Coordinator(terms, graph([0, 1, 2], secure.neighbours, seed, round))
    for step, said, take in ((1, lambda _: told.to_bytes(), at.take_keys), (2, at.peers, at.take_sealed)):
        answers = [
            made.server.edges[k].handle(Instruction("sum", round, k, b"", step=step, said=said(k))) for k in range(3)
        ]
        for k, report in enumerate(answers):
            assert not report.error
            take(k, report.payload)
    trained = next(i for i in reversed(made.server.direct.asked) if i.kind == "train")
    return [
        replace(trained, client=k, round=round, payload=b"no model", said=at.sealed_for(k), recorded="")
        for k in range(3)
    ]


def test_what_is_no_step_of_a_sum_is_not_charged_and_a_sum_is_charged_once(recorded):
    """A server that says anything could else spend a budget that nothing is released for. (The last test of this run,
    whose books have a sum more from here on.)"""
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
    for payload in (b"no model", b"another", b"a third"):  # which only a step that is charged looks into
        assert made.server.edges[0].handle(replace(asked[0], payload=payload)).error
    assert len(book(made, 0)) == before[0] + 1

"""How many colluding clients a secure sum tolerates: read with one more than the bound, not read with the bound."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedpeft.clients.masking import Masking, MaskPlan

from fedpeft.attack.colluding import SplitView
from fedpeft.communication.messages import Instruction
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.parts.families import MECHANISMS, SUMS
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.certificates import Identity
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.collusion import count_tolerated, explain_excess
from fedpeft.privacy.secure_sum.contribution import BESIDE
from fedpeft.privacy.secure_sum.masks import dtype
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.roster import Roster
from tests.refusals import has_error, refuses

SECURE = SUMS.build("secure_sum")
COHORTS = {5: 1, 10: 4, 20: 6, 100: 34}
DOCUMENTED = {3: 1, 4: 2, **COHORTS}
ROOT = Path(__file__).parents[3]


def terms_of(clients, **settings):
    return replace(replace(SECURE, **settings).terms(clients), length=20, context=b"context")


class Direct(Member):
    """An honest member with a vector of its own."""

    def add(self, sealed):
        return self.vector(sealed, SECRET[: self.terms.length].astype(dtype(self.terms.bits)))


SECRET = np.random.default_rng(7).integers(0, 2**SECURE.bits, 20)


def split_view(terms, colluding, outsiders):
    """Return the attack on client 0, whose neighbors are honest clients, then colluding ones; then come outsiders."""
    k = terms.neighbor_count
    keys = {i: Ed25519PrivateKey.from_private_bytes(struct.pack(">8I", *[i] * 8)) for i in range(k + 1 + outsiders)}
    roster = Roster({i: key.public_key() for i, key in keys.items()})
    members = {i: Direct(i, terms, key, roster) for i, key in keys.items()}
    near, liars, far = ({i: members[i] for i in ids} for ids in (
        range(1, k - colluding + 1), range(k - colluding + 1, k + 1), range(k + 1, k + 1 + outsiders)))  # fmt: skip
    return SplitView(terms, (0, members[0]), near, far, liars)


OTHERS = [(3, {}), (4, {}), (10, {"threshold": 0.8}), (40, {"neighbours": 12}), (9, {"threshold": 0.5})]


@pytest.mark.parametrize(("clients", "settings"), [*((n, {}) for n in COHORTS), *OTHERS], ids=str)
def test_the_bound_is_exact(clients, settings):
    """The same driver reads the victim's vector with one more colluding client, and not with as many as tolerated."""
    terms = terms_of(clients, **settings)
    tolerated = count_tolerated(terms)
    for colluding in {min(1, tolerated), tolerated}:
        assert split_view(terms, colluding, terms.needed_shares - colluding).run() is None
    np.testing.assert_array_equal(split_view(terms, tolerated + 1, 1).run(), SECRET)


def test_enough_colluding_clients_need_no_split_view():
    """Seven of ten hold the shares that give any secret: no honest client has to be asked at all."""
    np.testing.assert_array_equal(split_view(terms_of(10), 7, 0).run(), SECRET)


def test_a_cohort_that_is_the_whole_federation_tolerates_one_more():
    """Without an outsider the second group lacks a signature: honest members refuse to release."""
    attack = split_view(terms_of(10), COHORTS[10] + 1, 0)
    assert attack.run() is None
    assert any(has_error(refusal, "FP6130", 7) for refusal in attack.refusals)


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/privacy-attacks.md"])
def test_the_documented_table_is_that_of_the_code(page):
    tolerated = {n: count_tolerated(SECURE.terms(n)) for n in DOCUMENTED}
    fewest = {n: min(count_tolerated(SECURE.terms(m)) for m in range(n, 2000)) for n in DOCUMENTED}
    assert tolerated == DOCUMENTED
    text = (ROOT / page).read_text()
    head, _, *lines = text[text.index("\n| cohort |") :].splitlines()[1:9]
    assert [cell.strip() for cell in head.split("|")[1:5]] == [
        "cohort", "`secure_sum`", "`distributed_dp`", "`--fewest` of that number"
    ]  # fmt: skip
    rows = [[int(cell) for cell in line.split("|")[1:5]] for line in lines]
    assert rows == [[n, tolerated[n], tolerated[n], fewest[n]] for n in DOCUMENTED]


@pytest.mark.parametrize("collude", [0.1, 0.2, 0.33, 0.336])
def test_a_share_below_the_threshold_s_bound_is_taken_in_cohorts_of_every_size(collude):
    MECHANISMS.build(f"distributed_dp(epsilon=8, collude={collude}, mask_neighbours=1999)").sums().check_colluding(2000)


BEYOND = [("collude=0.7", 10), ("collude=0.5", 10), ("collude=0.35", 100), ("collude=0.2, threshold=0.5", 6),
          ("collude=0.1", 1000)]  # fmt: skip


@pytest.mark.parametrize(("settings", "clients"), BEYOND)
def test_a_share_beyond_it_is_refused_in_one_sentence(settings, clients):
    """The last one: 100 of 1,000 collude, and the server makes them neighbors of whom it wants to read."""
    sums = MECHANISMS.build(f"distributed_dp(epsilon=8, {settings})").sums()
    with refuses("FP7130", settings.split(",")[0]) as error:
        sums.check_colluding(clients)
    assert "\n" not in str(error.value)


OWN = [(0.5, 11, True), (0.4, 11, True), (0.3, 11, False), (0.2, 5, False), (0.4, 5, True), (0.01, 1000, False)]


@pytest.mark.parametrize(("collude", "announced", "refused"), OWN)
def test_a_client_refuses_sums_that_its_own_share_could_read(tmp_path, collude, announced, refused):
    """Its own --collude against the terms of each sum, whatever the server's settings assume."""
    authority = Authority(tmp_path / "certs", 1)
    authority.ensure()
    own = Credentials.load_client(authority.client("edge-0"))
    identity = Identity("run", own.key, own.certificate, own.authority, collude=collude)
    client = Masking(MaskPlan(SECURE, False, 1000, identity), tmp_path / "client", 3)
    told = Announcement(bytes(16), announced, 10, BESIDE, 1.0).to_bytes()
    report = client.answer(Instruction("sum", 1, 0, b"", step=1, said=told))
    assert bool(report.error) == refused
    assert not refused or has_error(report.error, "FP6194", f"collude={collude:g}", announced)


def test_a_higher_threshold_allows_more():
    MECHANISMS.build("distributed_dp(epsilon=8, collude=0.5, threshold=0.8, dropouts=0)").sums().check_colluding(100)


def test_no_sum_tolerates_all_others():
    for clients in range(FEWEST, 200):
        for threshold in (0.5, 0.67, 0.9, 0.99):
            terms = replace(SECURE, threshold=threshold).terms(clients)
            assert 0 <= count_tolerated(terms) <= clients - 2
            assert not explain_excess(terms, clients, 0.0)


def test_the_audit_of_sums_states_the_bound(capsys):
    from fedpeft.audit.__main__ import main as audit

    assert audit(["--privacy", "secure_sum"]) == 0
    printed = capsys.readouterr().out
    for clients, tolerated in DOCUMENTED.items():
        assert re.search(rf"\b{clients} clients\W+{tolerated}\b", printed)
    assert "not audited" not in printed


def test_the_audit_of_noisy_sums_states_that_it_audits_no_epsilon(capsys):
    from fedpeft.audit.__main__ import main as audit

    assert audit(["--privacy", "distributed_dp(epsilon=8)"]) == 0
    assert re.search(r"epsilon\W+not audited", capsys.readouterr().out)


def test_unknown_privacy_stays_one_sentence(capsys):
    from fedpeft.audit.__main__ import main as audit

    assert audit(["--privacy", "none_such"]) == 2

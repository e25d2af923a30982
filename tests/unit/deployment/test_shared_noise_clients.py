"""Real clients that share the noise of their sums: what each adds, what its ledger says, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fedpeft.clients.masking import Masking, MaskPlan

from fedpeft.communication.messages import Instruction
from fedpeft.deployment.client.shared_settings import parse_shared_settings
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server.settings_checks import check
from fedpeft.privacy.engine import KEY
from fedpeft.privacy.secure_sum import words
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.certificates import Identity
from fedpeft.privacy.secure_sum.contribution import BESIDE, Contribution
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.privacy.secure_sum.shared_noise import SharedNoise
from fedpeft.privacy.skellam import Grid
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.conftest import SilentObserver
from tests.here import Federation
from tests.refusals import has_error, refuses
from tests.runs.deployment.test_shared_noise_clients import SHARED


def test_a_share_of_colluding_clients_is_the_larger_of_both(tmp_path):
    made = Federation(tmp_path, SilentObserver(), [{"collude": 0.5}, {}, {}], **SHARED)
    wary, other = (edge.protection for edge in made.server.edges[:2])
    assert wary.engine.sums == other.engine.sums, "all have one grid"
    assert wary.compute_cost()[0].noise == pytest.approx(
        other.compute_cost()[0].noise * (1 - 0.5 / 0.9) ** 0.5, rel=1e-3
    )


def test_a_number_of_rows_that_is_not_even_the_client_s_own(tmp_path):
    with refuses("FP7020", "39", "40"):
        Federation(tmp_path, SilentObserver(), **SHARED | {"privacy": "distributed_dp(noise_multiplier=2, rows=39)"})


def test_noise_that_the_settings_name_too_small_is_charged_as_it_is(tmp_path):
    given = SHARED | {"privacy": "distributed_dp(epsilon=8, noise_multiplier=0.3, rows=150)", "batch_size": 30}
    with refuses("FP7048"):
        Federation(tmp_path, SilentObserver(), [{"max_epsilon": 2.0}, {}, {}], **given)


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
            own = Credentials.load_client(authority.client(f"edge-{k}"))
            identity = Identity("run", own.key, own.certificate, own.authority)
            plan = MaskPlan(self.sums, False, 100, identity, (self.sums, folder / KEY))
            self.sides.append(Masking(plan, folder / str(k), 1))
        self.told = Announcement(b"n" * 16, announced, 6, BESIDE, 1.0)
        self.terms = self.told.terms(self.sums, 1, 1, "run")
        self.at = Coordinator(self.terms, {k: [j for j in self.ids if j != k] for k in self.ids})

    def ask(self, k, step, said=None):
        at = self.at
        says = (
            lambda _: self.told.to_bytes(),
            at.peers,
            at.sealed_for,
            lambda _: at.write_survivors(),
            at.witnesses_for,
        )
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
    parse_shared_settings('privacy = "distributed_dp(epsilon=8, rows=300)"\nclients = 3')
    for privacy, says in (
        ("distributed_dp(epsilon=8)", ("FP7062",)),
        ("distributed_dp(epsilon=8, rows=300, threshold=0.6)", ("FP7081",)),
        ("distributed_dp(epsilon=8, rows=300, audit=True)", ("FP5099",)),
    ):
        with refuses(*says):
            parse_shared_settings(f'privacy = "{privacy}"\nclients = 3')
    check(parse_run(RunConfig(privacy="distributed_dp(epsilon=8, unit=clients)")), ServeOptions())


def test_a_share_of_colluding_clients_means_nothing_elsewhere(federation):
    with refuses("FP7120", "--collude"):
        federation(clients=1, privacy="dp_sgd(epsilon=8)", options=[{"collude": 0.1}])

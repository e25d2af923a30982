"""What a client computes follows from what all clients were told alike, field by field of instructions and records.

Fields are read off the messages themselves: a new one fails these tests until somebody says what it may do.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.downlink import Downlink
from fedpeft.communication.messages import ALIKE, LOCAL, OF_SUM
from fedpeft.deployment.client.instruction_policy import InstructionPolicy
from fedpeft.errors import FedpeftError
from fedpeft.privacy.secure_sum.member import Member
from tests.conftest import SilentObserver
from tests.here import Federation
from tests.refusals import has_error, refuses
from tests.runs.attacks.test_malicious_server import fields_of
from tests.unit.deployment.test_instruction_policy import FIELDS, record

PLANTED = "a planted model"


# ------------------------------------------------------------------------------------------------- in a secure sum


@pytest.fixture(scope="module", params=["secure_sum", "distributed_dp(noise_multiplier=1, rows=310, test_noise=True)"])
def summed(request, tmp_path_factory):
    """Return a round of a secure sum: the honest third steps, and each client's contribution."""
    given = {"privacy": request.param, "clients": 3, "rounds": 1}
    if "distributed" in request.param:
        given |= {"local_work": "epochs(1.0)", "batch_size": 16}
    made, plain = Federation(tmp_path_factory.mktemp("fields"), SilentObserver(), **given), {}
    vector = Member.vector

    def kept(self, sealed, numbers):
        plain[self.client] = numbers
        return vector(self, sealed, numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Member, "vector", kept)
        made.run()
    third = {i.client: i for i in made.server.direct.asked if i.kind == "train"}
    edge = made.server.edges[0]
    trained = edge.workers.pool._local.clients
    return SimpleNamespace(made=made, edge=edge, asked=third[0], plain=plain, side=trained)


def update(summed, instruction):
    """Return the client's contribution to a sum; raise its error if the client refuses."""
    edge, kept = summed.edge, []
    instruction.check(len(edge.setup.layout.tensors))
    edge.policy.check(instruction)
    if edge.protection is not None:  # the client's own ledger counts attempts
        instruction = replace(instruction, attempt=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summed.side.reports.masking, "add", lambda _, made: kept.append(made(None)))
        patch.setattr(summed.side.reports.masking, "get_repeated_report", lambda _: None)
        summed.side.handle([instruction])
    return torch.cat([tensor.double().ravel() for tensor in kept[0].update.values()])


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in (*ALIKE, *OF_SUM, *LOCAL)])
def test_no_field_that_one_client_may_get_otherwise_changes_its_part_in_a_sum(summed, name):
    """`ALIKE` is what records fix; the members of a sum check `OF_SUM` by themselves."""
    honest = update(summed, summed.asked)
    changed = 0
    for value in (*fields_of(summed.asked)[name], *HARD.get(name, ())):
        other = replace(summed.asked, **{name: value})
        if name == "payload" and value == PLANTED:
            state = {n: torch.zeros_like(t) for n, t in summed.edge.setup.start.items()}
            other = replace(summed.asked, payload=parse_codec("fp32").encode(state))
        if other == summed.asked:
            continue
        changed += 1
        try:
            found = update(summed, other)
        except FedpeftError:
            continue
        if name == "client":  # whose rows are drawn in another order; the server gives an id once
            continue
        np.testing.assert_array_equal(found, honest, err_msg=f"{name}={value!r:.60}")
    assert changed


HARD = {
    "rank": (2, 1), "alpha": (32.0001, 31.999), "steps": (1, 2), "bits": (4.0,), "base_precision": ("bf16", "int8"),
    "adapter_precision": ("bf16",), "attempt": (1,), "acknowledged": (1,), "payload": (PLANTED,),
}  # fmt: skip
"""Values that are legal elsewhere."""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"correction": b"x"}, ("FP6180", "correction=b'x'")),
        ({"base": 1}, ("FP6180", "base=1")),
        ({"private": (0,)}, ("FP6177", 1, 0)),
        ({"trained": (0,)}, ("FP6178", 1, "round 1")),
        ({"told": b"x"}, ("FP6180", "told=b'x'")),
        ({"asks": "likelihoods", "kind": "evaluate"}, ("FP6179", "evaluate")),
        ({"released": ""}, ("FP6181",)),
    ],
    ids=str,
)
def test_what_all_are_told_alike_follows_from_the_settings_of_a_sum(summed, changes, says):
    with refuses(*says):
        summed.edge.policy.check(replace(summed.asked, **changes))


def test_members_with_different_records_are_in_different_sums(summed):
    """The server tells one client another history: no neighbor takes the keys that it signs in it."""
    made, edge = summed.made, summed.edge
    at = [i for i in made.server.direct.asked if i.step == 2 and i.client == 0 and i.round == 1]
    notes = edge.folder / "clients" / "secure_sum.member"
    notes.unlink()
    first = next(i for i in made.server.direct.asked if i.step == 1 and i.client == 0 and i.round == 1)
    assert not edge.handle(replace(first, recorded="6" * 64)).error
    assert has_error(edge.handle(replace(at[0], recorded="6" * 64)).error, "FP6138")


# ------------------------------------------------------------------------------------------------- outside of sums


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    options = [{"rank": 1}, {}]
    return Federation(tmp_path_factory.mktemp("mixed"), SilentObserver(), options, strategy="flexlora", rounds=1)


def test_ranks_follow_from_what_a_client_has_joined_with(mixed):
    mixed.run()
    forms = {(i.client, i.rank, i.alpha) for i in mixed.server.direct.asked if i.kind == "train"}
    assert forms == {(0, 1, 16.0), (1, 2, 32.0)}
    asked = next(i for i in mixed.server.direct.asked if i.client == 0 and i.kind == "train")
    larger, whole = {"rank": 2, "alpha": 32.0}, {"rank": 0, "alpha": 0.0}
    for changes in (larger, {"alpha": 16.0001}, {"alpha": 32.0}, {"rank": 0}, whole):
        error = mixed.server.edges[0].handle(replace(asked, **changes)).error
        assert "legal are ranks 1 to 2, each with alpha 16 times the rank; this client has joined with rank 1" in error


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ({"rank 2, alpha 32.0001": "0" * 64}, ("FP5244", "rank 2, alpha 32.0001", 1, 2, 16)),
        ({"rank 3, alpha 48.0": "0" * 64}, ("FP5244", "rank 3, alpha 48.0", 1, 2, 16)),
        ({"whole": "0" * 64}, ("FP5244", "whole")),
        ({"rank 2, alpha 32.0": ""}, ("FP5246", "rank 2, alpha 32.0")),
        ({"rank 2, alpha 32.0": "groups"}, ("FP5246", "rank 2, alpha 32.0")),
    ],
    ids=str,
)
def test_a_record_leaves_no_choice_of_models(mixed, states, says):
    policy = mixed.server.edges[0].policy
    policy.check_record(record(states={"rank 2, alpha 32.0": "0" * 64, "rank 1, alpha 16.0": "1" * 64}))
    with refuses(*says):
        policy.check_record(record(states=states))


def test_where_ranks_are_not_mixed_a_record_has_one_form(summed):
    policy: InstructionPolicy = summed.edge.policy
    policy.check_record(record(states={"rank 2, alpha 32.0": "0" * 64}))
    with refuses("FP5244", "rank 1, alpha 16.0", "rank 2, alpha 32.0"):
        policy.check_record(record(states={"rank 2, alpha 32.0": "0" * 64, "rank 1, alpha 16.0": "1" * 64}))


@pytest.mark.parametrize("hostile", [True, False], ids=["hostile", "honest"])
def test_a_model_of_its_own_for_clients_of_a_smaller_rank_is_noticed_by_those_of_a_larger_one(
    tmp_path, monkeypatch, hostile
):
    """Each client compared the digest of its own rank alone, which the server chooses for each rank."""
    real = Downlink._create_package

    def planted(downlink, form, *more):
        package = real(downlink, form, *more)
        if not hostile or form.rank > 1:
            return package
        state = {name: tensor + 1 for name, tensor in package.state.items()}
        return replace(package, state=state, payload=downlink._codec.encode(state))

    monkeypatch.setattr(Downlink, "_create_package", planted)
    made = Federation(tmp_path, SilentObserver(), [{"rank": 1}, {}], strategy="flexlora", rounds=2)
    made.run()
    trained = [report for asked, report in zip(made.server.direct.asked, made.server.direct.reports, strict=True)
               if asked.kind == "train"]  # fmt: skip
    errors = {report.client: report.error for report in trained}
    assert not errors[0]
    assert ("recorded a model for clients of rank 1" in errors[1]) == hostile
    assert bool(errors[1]) == hostile

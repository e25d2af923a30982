"""What a client computes follows from what all clients were told alike, field by field of instructions and records.

Fields are read off the messages themselves: a new one fails these tests until somebody says what it may do.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.messages import ALIKE, LED_BY_RECORD, LOCAL, OF_SUM, OWN, Instruction
from fedpeft.communication.release import common_digest, instruction_digest, own_fields
from fedpeft.config import RunConfig
from fedpeft.deployment.instruction_policy import SUMMED, InstructionPolicy
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.round_record import Chain, RoundRecord, TaskRecord
from fedpeft.deployment.shared_settings import settings_digest
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import FedpeftError, RunError
from fedpeft.privacy.secure_sum.member import Member
from tests.attacks.test_malicious_server import fields_of
from tests.conftest import SilentObserver
from tests.deployment.signing_server import release, task
from tests.here import TINY, Federation

FIELDS = [f.name for f in dataclasses.fields(Instruction)]
PLANTED = "a planted model"


def test_every_field_of_an_instruction_is_of_one_kind():
    kinds = [*ALIKE, *OWN, *LED_BY_RECORD, *OF_SUM, *LOCAL]
    assert sorted(kinds) == sorted(FIELDS), "say in fedpeft.communication.messages who may choose the new field"
    assert set(FIELDS) >= SUMMED


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_recorded_for_all_or_signed_for_one(name):
    honest = task()
    for value in fields_of(honest)[name]:
        other = replace(honest, **{name: value})
        if value == getattr(honest, name) or value != value or value == "\ud800":
            continue
        assert (common_digest(other) != common_digest(honest)) is (name in ALIKE), value
        assert (own_fields(other) != own_fields(honest)) is (name in OWN), value
        assert (instruction_digest(other) != instruction_digest(honest)) is (name not in LOCAL), value


# ------------------------------------------------------------------------------------------------- in a secure sum


@pytest.fixture(scope="module", params=["secure_sum", "distributed_dp(noise_multiplier=1, rows=310, test_noise=True)"])
def summed(request, tmp_path_factory):
    """A round of a secure sum: the honest third steps, and what each client has put into the sum."""
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
    """What the client would put into a sum; it raises what the client refuses."""
    edge, kept = summed.edge, []
    instruction.check(len(edge.setup.layout.tensors))
    edge.policy.check(instruction)
    if edge.protection is not None:  # the client's own ledger counts attempts
        instruction = replace(instruction, attempt=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summed.side.masking, "add", lambda _, made: kept.append(made(None)))
        patch.setattr(summed.side.masking, "repeated", lambda _: None)
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
        ({"correction": b"x"}, "gives this client correction"),
        ({"base": 1}, "gives this client base=1"),
        ({"private": (0,)}, "says that 1 tensors stay with clients"),
        ({"trained": (0,)}, "asks to train 1 tensors in round 1"),
        ({"told": b"x"}, "gives this client told"),
        ({"asks": "likelihoods", "kind": "evaluate"}, "evaluate without masks"),
        ({"released": ""}, "trains on no model but the recorded one"),
    ],
    ids=str,
)
def test_what_all_are_told_alike_follows_from_the_settings_of_a_sum(summed, changes, says):
    with pytest.raises(FedpeftError, match=says):
        summed.edge.policy.check(replace(summed.asked, **changes))


# ------------------------------------------------------------------------------------------------------------ records


def record(**changes):
    made = release(task())
    fields = {"run": "r", "sequence": 0, "previous": "", "kind": "train", "round": 1, "cohort": 2, "settings": "5" * 64}
    fields |= {"states": made.states, "common": made.common, "base": "", "time": 1, "asks": ""}
    return RoundRecord(**fields | changes)


OTHER = {
    "run": "s", "sequence": 1, "previous": "6" * 64, "kind": "evaluate", "round": 2, "cohort": 3, "settings": "6" * 64,
    "states": {"rank 2, alpha 4.0": "0" * 64}, "common": "6" * 64, "base": "6" * 64, "time": 2, "asks": "likelihoods",
}  # fmt: skip


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(RoundRecord)])
def test_every_field_of_a_record_is_compared_and_separates_sums(name):
    """Clients that were told different content are in different sums, before anybody compares their transcripts."""
    honest, other = record(), record(**{name: OTHER[name]})
    assert honest != other, "which python -m fedpeft.transcript shows"
    assert honest.to_bytes() != other.to_bytes()
    place = {"run", "sequence", "previous", "time"}  # a resumed server records a round again; run names are in terms
    assert (honest.digest != other.digest) is (name not in place)


def test_every_field_of_a_task_record_is_known():
    assert {f.name for f in dataclasses.fields(TaskRecord)} == {"run", "client", "record", "digest", "time", "own"}


def test_members_with_different_records_are_in_different_sums(summed):
    """The server tells one client another history: no neighbor takes the keys that it signs in it."""
    made, edge = summed.made, summed.edge
    at = [i for i in made.server.direct.asked if i.step == 2 and i.client == 0 and i.round == 1]
    notes = edge.folder / "clients" / "secure_sum.member"
    notes.unlink()
    first = next(i for i in made.server.direct.asked if i.step == 1 and i.client == 0 and i.round == 1)
    assert not edge.handle(replace(first, recorded="6" * 64)).error
    assert "a signature is not that of client" in edge.handle(replace(at[0], recorded="6" * 64)).error


def test_every_field_of_a_description_is_in_the_digest_of_the_settings():
    plain = v2.Description()
    for field in plain.DESCRIPTOR.fields:
        other = v2.Description()
        value = {field.TYPE_STRING: "x", field.TYPE_UINT32: 7, field.TYPE_DOUBLE: 0.5}[field.type]
        if field.is_repeated:
            getattr(other, field.name).append(value)
        else:
            setattr(other, field.name, value)
        assert (settings_digest(other) != settings_digest(plain)) is (field.name != "software"), field.name


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


PROFILES = """
[[profile]]
link = 0.1
local_steps = 1
base = "bf16"
adapter = "bf16"
[[profile]]
link = 1.0
"""


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "hetlora(decay=0.5)"},
        {"strategy": "flora"},
        {"strategy": "fslora"},
        {"strategy": "flexlora", "downlink": "small"},
        {"codec": "by_link | adaptive(bits=2.0) | rans", "profiles": PROFILES},
        {"strategy": "fedsa_lora", "profiles": PROFILES},
        {"strategy": "fedlease", "peft": "expert_lora(rank=2, layers=1)"},
    ],
    ids=str,
)
def test_clients_that_may_differ_take_part_in_every_round(tmp_path, observer, given):
    """Mixed and falling ranks, precision by link and by profile, private tensors and groups."""
    profiles, given = given.get("profiles"), {name: given[name] for name in given if name != "profiles"}
    options = [{"rank": 1}, {}] if given.get("strategy") in ("flora", "fslora", "flexlora") else [{}, {}]
    made = Profiled(tmp_path, observer, profiles, options, **given, rounds=3)
    made.run()
    lines = [json.loads(line) for line in (tmp_path / "server" / "clients.jsonl").read_text().splitlines()]
    assert len(lines) >= 6
    assert not [line["rejected"] for line in lines if "rejected" in line]


class Profiled(Federation):
    """A server whose clients have profiles."""

    def __init__(self, folder, observer, profiles, options, **given):
        self.profiles = profiles
        super().__init__(folder, observer, options, **given)

    def start(self, edges=()):
        if self.profiles is not None:
            (self.folder / "clients.toml").write_text(self.profiles)
            self.config = replace(self.config, clients=str(self.folder / "clients.toml"))
        super().start(edges)
        self.config = replace(self.config, clients=2)


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ({"rank 2, alpha 32.0001": "0" * 64}, "legal are ranks 1 to 2"),
        ({"rank 3, alpha 48.0": "0" * 64}, "legal are ranks 1 to 2"),
        ({"whole": "0" * 64}, "records a model of whole"),
        ({"rank 2, alpha 32.0": ""}, "has no digest of the model of rank 2"),
        ({"rank 2, alpha 32.0": "groups"}, "has no digest of the model of rank 2"),
    ],
    ids=str,
)
def test_a_record_leaves_no_choice_of_models(mixed, states, says):
    policy = mixed.server.edges[0].policy
    policy.check_record(record(states={"rank 2, alpha 32.0": "0" * 64, "rank 1, alpha 16.0": "1" * 64}))
    with pytest.raises(RunError, match=says):
        policy.check_record(record(states=states))


def test_where_ranks_are_not_mixed_a_record_has_one_form(summed):
    policy: InstructionPolicy = summed.edge.policy
    policy.check_record(record(states={"rank 2, alpha 32.0": "0" * 64}))
    with pytest.raises(RunError, match=r"records a model of rank 1, alpha 16\.0 .*; legal is rank 2, alpha 32\.0"):
        policy.check_record(record(states={"rank 2, alpha 32.0": "0" * 64, "rank 1, alpha 16.0": "1" * 64}))


def test_a_question_is_the_same_for_all():
    chain = Chain("r", "5" * 64)
    chain.append(record().to_bytes())
    again = record(sequence=1, previous=chain.head, kind="evaluate", asks="likelihoods")
    chain.append(again.to_bytes())
    chain.append(replace(again, sequence=2, previous=chain.head, asks="", states={"whole": "1" * 64}).to_bytes())
    with pytest.raises(RunError, match="another content"):
        chain.append(replace(again, sequence=3, previous=chain.head, states=OTHER["states"]).to_bytes())


# --------------------------------------------------------------------------------------------- an honest server


@pytest.mark.parametrize(
    ("profile", "given", "says"),
    [
        ("local_steps = 3", {"privacy": "secure_sum"}, "leave local_steps, base and adapter out of the profiles"),
        ('base = "bf16"', {"privacy": "secure_sum"}, "leave local_steps, base and adapter out"),
        (
            "alpha = 7.0\nrank = 1",
            {"strategy": "flexlora"},
            "takes no other alpha than its settings give for that rank",
        ),
        ("", {"privacy": "secure_sum", "downlink": "int8"}, "clients compare the model that they are sent"),
    ],
    ids=str,
)
def test_an_honest_server_is_told_what_clients_would_refuse(tmp_path, observer, profile, given, says):
    (tmp_path / "clients.toml").write_text(f"[[profile]]\ncount = 2\n{profile}\n[[profile]]\ncount = 1\n")
    made = {"clients": str(tmp_path / "clients.toml"), **given}
    with pytest.raises(FedpeftError, match=says):
        Serving(tmp_path, observer, **made)


class Serving(Federation):
    """A server that nobody joins."""

    def __init__(self, folder, observer, **given):
        self.folder, self.observer, self.serve = folder, observer, ServeOptions()
        self.config = RunConfig(**{**TINY, **given})
        (folder / "server").mkdir()
        self.start()

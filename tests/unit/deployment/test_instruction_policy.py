"""What a client computes follows from what all clients were told alike, field by field of instructions and records.

Fields are read off the messages themselves: a new one fails these tests until somebody says what it may do.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import pytest

from fedpeft.communication.broadcast_digests import compute_common_digest, compute_instruction_digest, select_own_fields
from fedpeft.communication.messages import ALIKE, LED_BY_RECORD, LOCAL, OF_SUM, OWN, Instruction
from fedpeft.deployment.client.instruction_policy import SUMMED
from fedpeft.deployment.client.shared_settings import compute_settings_digest
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.transcript.round_record import Chain, RoundRecord, TaskRecord
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.wiring.config import RunConfig
from tests.deployment.signing_server import release, task
from tests.here import TINY, Federation
from tests.refusals import refuses
from tests.runs.attacks.test_malicious_server import fields_of

FIELDS = [f.name for f in dataclasses.fields(Instruction)]


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
        assert (compute_common_digest(other) != compute_common_digest(honest)) is (name in ALIKE), value
        assert (select_own_fields(other) != select_own_fields(honest)) is (name in OWN), value
        assert (compute_instruction_digest(other) != compute_instruction_digest(honest)) is (name not in LOCAL), value


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
    assert honest != other, "which fedpeft transcript shows"
    assert honest.to_bytes() != other.to_bytes()
    place = {"run", "sequence", "previous", "time"}  # a resumed server records a round again; run names are in terms
    assert (honest.digest != other.digest) is (name not in place)


def test_every_field_of_a_task_record_is_known():
    assert {f.name for f in dataclasses.fields(TaskRecord)} == {"run", "client", "record", "digest", "time", "own"}


def test_every_field_of_a_description_is_in_the_digest_of_the_settings():
    plain = v2.Description()
    for field in plain.DESCRIPTOR.fields:
        other = v2.Description()
        value = {field.TYPE_STRING: "x", field.TYPE_UINT32: 7, field.TYPE_DOUBLE: 0.5}[field.type]
        if field.is_repeated:
            getattr(other, field.name).append(value)
        else:
            setattr(other, field.name, value)
        assert (compute_settings_digest(other) != compute_settings_digest(plain)) is (field.name != "software"), (
            field.name
        )


PROFILES = """
[[profile]]
link = 0.1
local_steps = 1
base = "bf16"
adapter = "bf16"
[[profile]]
link = 1.0
"""


@pytest.mark.medium
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


def test_a_question_is_the_same_for_all():
    chain = Chain("r", "5" * 64)
    chain.append(record().to_bytes())
    again = record(sequence=1, previous=chain.head, kind="evaluate", asks="likelihoods")
    chain.append(again.to_bytes())
    chain.append(replace(again, sequence=2, previous=chain.head, asks="", states={"whole": "1" * 64}).to_bytes())
    with refuses("FP5092", "record 3", "record 1"):
        chain.append(replace(again, sequence=3, previous=chain.head, states=OTHER["states"]).to_bytes())


# --------------------------------------------------------------------------------------------- an honest server


@pytest.mark.parametrize(
    ("profile", "given", "says"),
    [
        ("local_steps = 3", {"privacy": "secure_sum"}, ("FP7121", "secure_sum", "local_steps, base and adapter")),
        ('base = "bf16"', {"privacy": "secure_sum"}, ("FP7121", "secure_sum", "local_steps, base and adapter")),
        (
            "alpha = 7.0\nrank = 1",
            {"strategy": "flexlora"},
            ("FP1500", "rank 1", "alpha 7", 16),
        ),
        ("", {"privacy": "secure_sum", "downlink": "int8"}, ("FP7123", "secure_sum", "--downlink")),
    ],
    ids=str,
)
def test_an_honest_server_is_told_what_clients_would_refuse(tmp_path, observer, profile, given, says):
    (tmp_path / "clients.toml").write_text(f"[[profile]]\ncount = 2\n{profile}\n[[profile]]\ncount = 1\n")
    made = {"clients": str(tmp_path / "clients.toml"), **given}
    with refuses(*says):
        Serving(tmp_path, observer, **made)


class Serving(Federation):
    """A server that nobody joins."""

    def __init__(self, folder, observer, **given):
        self.folder, self.observer, self.serve, self.summed = folder, observer, ServeOptions(), False
        self.config = RunConfig(**{**TINY, **given})
        (folder / "server").mkdir()
        self.start()

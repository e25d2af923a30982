"""Rounds are signed and chained: a server that lies is refused with one sentence, and two transcripts show it."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fedpeft.communication.broadcast_digests import check_released, compute_common_digest, compute_digest
from fedpeft.communication.messages import Instruction
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.identity.signing import RECORD, TASK, SignedStatement, Signer, Verifier
from fedpeft.deployment.transcript.round_record import RoundRecord, TaskRecord, parse_record
from fedpeft.deployment.transcript.signed_log import encode_line
from fedpeft.deployment.transcript.transcript import Transcript
from tests.deployment.signing_server import RUN, SETTINGS, STATE, Server, forged, policy, task
from tests.refusals import refuses


def test_an_honest_server_is_believed_and_all_it_says_is_kept(server, joins):
    client = joins()
    server.round(task(0, "prepare"))
    assert server.sends(client, task(0, "prepare")).released == ""
    for round_number in (1, 2):
        for kind in ("train", "evaluate"):
            asked = server.round(task(round_number, kind))
            taken = server.sends(client, asked)
            assert replace(taken, recorded="") == replace(asked, released=compute_digest(STATE))
            assert taken.recorded == parse_record(RoundRecord, server.said.get_records_since(0)[-1].content).digest
            assert server.sends(client, asked).released, "sent again after a lost connection"
    file = server.folder / "edge-1.transcript.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [("record" in line, "task" in line) for line in lines] == 5 * [(True, False), (False, True)]
    before = file.read_bytes()
    again = joins()
    assert len(again) == 5
    server.sends(again, server.round(task(3)))
    assert file.read_bytes().startswith(before), "lines are only ever added"


def test_a_client_that_was_away_is_sent_what_it_missed(server, joins):
    client = joins()
    server.sends(client, server.round(task(1)))
    for round_number in range(2, 9):
        server.round(task(round_number))
    server.sends(client, task(8))
    assert len(client) == 8
    assert len(joins()) == 8


def test_a_server_that_is_resumed_goes_on_with_the_chain(server, joins):
    """It may repeat the round that was lost, whose outcome may be another one than it was evaluated with."""
    client = joins()
    server.sends(client, server.round(task(1)))
    server.sends(client, server.round(task(1, "evaluate"), state={"a": torch.ones(1)}))
    with open(server.folder / "server.jsonl", "a") as file:
        file.write('{"record": "a power cut')
    server.open()
    server.sends(client, server.round(task(1, attempt=1)))
    server.sends(client, server.round(task(1, "evaluate")))
    server.sends(client, server.round(task(2)))
    assert len(client) == len(server.said) == 5


def test_a_resumed_server_sends_a_training_again_that_is_in_flight(server, joins):
    """FedBuff's clients train while rounds go by, and may have evaluated before the server was killed."""
    client, other = joins(), joins("edge-2")
    asked = server.sends(client, server.round(task(1)))
    server.sends(other, task(1), name="edge-2")
    server.round(task(2))
    evaluated = server.sends(client, server.round(task(2, "evaluate")))
    server.open()
    assert server.sends(client, task(1)) == asked
    assert server.sends(other, task(1), name="edge-2") == asked
    assert server.sends(joins(), task(1)) == asked, "a client that was started again, too"
    with refuses("FP5126", "the training of round 1", "the evaluation of round 2"):
        server.sends(client, task(1, attempt=1))
    with refuses("FP5126", "the training of round 2", "the evaluation of round 2"):
        server.sends(client, task(2))
    assert server.sends(client, task(2, "evaluate")) == evaluated
    server.sends(client, server.round(task(3)))
    with refuses("FP5126", "the training of round 1", "the training of round 3"):
        server.sends(client, task(1))


def test_a_server_does_not_contradict_itself(server):
    """What clients would refuse, it refuses itself: an older checkpoint, another state, other settings."""
    server.round(task(1))
    server.round(task(2))
    server.open()
    with refuses("FP5018", "FP5091"):
        server.round(task(1))
    with refuses("FP5018", "FP5090", "2"):
        server.round(task(4))
    with refuses("FP5018", "FP5092", "1"):
        server.round(task(2), state={"a": torch.ones(1)})
    assert len(server.said) == 2
    with refuses("FP5017", "FP5089"):
        server.open("6" * 64)


LIES = [
    ({"sequence": 5}, ("FP5086", "leaves a gap: the last one known here is 1")),
    ({"sequence": 0}, ("FP5087", "2")),
    ({"previous": "0" * 64}, ("FP5088",)),
    ({"round": 4}, ("FP5090", "2")),
    ({"round": 1}, ("FP5091", "2")),
    ({"round": 0, "kind": "prepare"}, ("FP5091", "2")),
    ({"round": 1, "kind": "evaluate"}, ("FP5091", "2")),
    ({"round": 2, "cohort": 3}, ("FP5092", "1")),
    ({"round": 2, "states": {"rank 2, alpha 4.0": "0" * 64}, "common": compute_common_digest(task(2))}, ("FP5092",)),
    ({"settings": "6" * 64}, ("FP5089",)),
    ({"run": "f" * 16}, ("FP5085",)),
    ({"kind": "steal"}, ("FP5083",)),
    ({"kind": "sum"}, ("FP5083",)),
    ({"round": -1}, ("FP5083",)),
    ({"round": True}, ("FP5083",)),
    ({"states": {"x": "../../file"}}, ("FP5083",)),
    ({"states": {"x" * 64: "0" * 64}}, ("FP5083",)),
    ({"states": {str(i): "0" * 64 for i in range(1000)}}, ("FP5082",)),
]  # fmt: skip


@pytest.mark.parametrize(("lie", "says"), LIES, ids=lambda value: str(value)[:40])
def test_a_record_that_can_not_follow_is_refused(server, joins, lie, says):
    client = joins()
    server.sends(client, server.round(task(1)))
    server.sends(client, server.round(task(2)))
    before = (server.folder / "edge-1.transcript.jsonl").read_bytes()
    with refuses(*says):
        client.receive(forged(server, client, **lie))
    assert len(client) == 2
    client.receive(forged(server, client))
    assert (server.folder / "edge-1.transcript.jsonl").read_bytes() == before, "written when a task is accepted"


def test_a_server_set_back_to_an_older_copy_is_refused(server, joins):
    client = joins()
    server.sends(client, server.round(task(1)))
    copy = (server.folder / "server.jsonl").read_bytes()
    server.sends(client, server.round(task(2)))
    (server.folder / "server.jsonl").write_bytes(copy)
    server.open()
    server.round(task(2), state={"a": torch.ones(1)})
    with refuses("FP5125"):
        server.sends(client, task(2))
    server.round(task(3))
    with refuses("FP5088"):
        server.sends(client, task(3))


def test_signatures_of_anybody_else_are_refused(server, joins, tmp_path):
    client = joins()
    record = server.round(task(1)) and server.said.get_records_since(0)[0]
    other = Server(tmp_path / "other")
    impostor = server.authority.client("edge-2")
    as_client = Signer(Credentials.load_client(impostor))
    for wrong, says in (
        (replace(record, signature=b""), ("FP5107",)),
        (replace(record, signature=record.signature[:-1] + b"\0"), ("FP5108",)),
        (replace(record, content=record.content.replace(b'"cohort": 2', b'"cohort": 3')), ("FP5108",)),
        (other.signer.sign(RECORD, record.content), ("FP5110",)),
        (as_client.sign(RECORD, record.content), ("FP5111",)),
        (replace(record, certificate=b"none"), ("FP5110",)),
        (server.signer.sign(TASK, record.content), ("FP5108",)),
    ):
        with refuses(*says):
            client.receive(wrong)
    old = parse_record(RoundRecord, record.content)
    with refuses("FP5109"):
        client.receive(server.signer.sign(RECORD, replace(old, time=1_000_000_000).to_bytes()))
    client.receive(record)


def step(number, round_number=1, said=b"said"):
    return Instruction("sum", round_number, 0, b"", step=number, said=said)


def test_the_steps_of_a_secure_sum_belong_to_the_round_that_was_recorded(server, joins):
    """A client that is started again goes on with them; a resumed server records the round again, and asks on."""
    client = joins()
    server.round(task(1))
    for asked in (step(1), step(2), replace(task(1), step=3), step(4)):
        assert replace(server.sends(client, asked), released="", recorded="") == asked
        assert server.sends(client, asked), "sent again after a lost connection"
    client = joins()
    server.sends(client, step(4))
    server.open()
    server.round(task(1))
    server.sends(client, step(5))
    with refuses("FP5121", "sum", "2", "the training of round 1"):
        server.sends(client, step(1, round_number=2))


def test_a_round_has_no_more_tasks_than_a_secure_sum_has_steps(server, joins):
    client = joins()
    server.round(task(1))
    for number in range(5):
        server.sends(client, step(1, said=bytes([number])))
    with refuses("FP5127", "more than 5", "the training of round 1"):
        server.sends(client, step(1, said=b"another"))
    with refuses("FP5127", "two", "the training of round 1"):
        server.sends(client, task(1))
    server.round(task(1, "evaluate"))
    with refuses("FP5121", "sum", "1", "the evaluation of round 1"):
        server.sends(client, step(1))


def test_without_tls_rounds_are_chained_and_not_signed(tmp_path):
    server = Server(tmp_path, tls=False)
    client = Transcript(tmp_path / "t.jsonl", RUN, SETTINGS, "edge-1", None, 100, policy())
    server.sends(client, server.round(task(1)))
    server.sends(client, server.round(task(2)))
    assert server.said.get_records_since(0)[0].signature == b""
    assert not server.said.is_signed
    record = parse_record(RoundRecord, server.said.get_records_since(1)[0].content)
    with refuses("FP5088"):
        client.receive(SignedStatement(replace(record, sequence=2, round=3, previous="1" * 64).to_bytes()))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"payload": b"another"}, ("FP5120",)),
        ({"steps": 999}, ("FP5120",)),
        ({"residual": b"x"}, ("FP5120",)),
        ({"name": "edge-2"}, ("FP5119", "edge-2")),
    ],
)
def test_a_task_that_the_statement_is_not_about_is_refused(server, joins, changes, says):
    with refuses(*says):
        server.sends(joins(), server.round(task(1)), **changes)


def test_a_task_that_does_not_fit_the_round_of_all_clients_is_refused(server, joins):
    client = joins()
    server.round(task(1))
    for wrong, says in (
        (task(2), ("FP5121", "train", "2", "the training of round 1")),
        (task(1, "evaluate"), ("FP5121", "evaluate", "1")),
        (replace(task(1), learning_rate=9.0), ("FP5122", "the training of round 1")),
        (replace(task(1), correction=b"x"), ("FP5122",)),
        (replace(task(1), rank=1), ("FP5123", "rank 1, alpha 4.0")),
    ):
        with refuses(*says):
            server.sends(client, wrong)
    assert server.sends(joins("edge-2"), task(1), name="edge-2").released


def test_a_client_s_tasks_never_go_back_and_it_has_one_in_each_round(server, joins):
    client = joins()
    first = server.round(task(1))
    early = server.said.create_statement("edge-1", first)
    server.sends(client, first)
    with refuses("FP5127", "two", "the training of round 1"):
        server.sends(client, replace(first, steps=3))
    server.sends(client, server.round(task(2)))
    with refuses("FP5126", "the training of round 1", "the training of round 2"):
        joins().accept(first, early)
    unknown = replace(parse_record(TaskRecord, early.content), record="0" * 64)
    with refuses("FP5125"):
        client.accept(first, server.signer.sign(TASK, unknown.to_bytes()))
    with refuses("FP5118"):
        client.accept(first, SignedStatement(b""))


def test_a_client_has_one_id_and_its_own_fields_stand_in_the_statement(server, joins):
    client = joins()
    server.sends(client, server.round(task(1)))
    server.round(task(2))
    with refuses("FP5249", 1, 0):
        server.sends(joins(), task(2, client=1))
    honest = parse_record(TaskRecord, server.said.create_statement("edge-1", task(2)).content)
    for own in (None, honest.own | {"steps": 3}, honest.own | {"rank": 1}):
        lie = server.signer.sign(TASK, replace(honest, own=own).to_bytes())
        with refuses("FP5248"):
            client.accept(task(2), lie)
    with refuses("FP5083", "own={'steps': 3}"):
        client.accept(task(2), server.signer.sign(TASK, replace(honest, own={"steps": 3}).to_bytes()))


def test_a_server_fills_no_disk_with_records(server, joins):
    client = joins(most=3)
    for round_number in range(1, 5):
        server.round(task(round_number))
    with refuses("FP5117", "3"):
        server.sends(client, task(4))


def test_a_server_fills_no_disk_with_long_records(server, joins, monkeypatch):
    client = joins()
    server.round(task(1))
    server.sends(client, task(1))
    taken = client._bytes
    assert taken == (server.folder / "edge-1.transcript.jsonl").stat().st_size
    assert joins()._bytes == taken, "also after a restart"
    server.round(task(2))
    for most in (
        taken,
        taken + len(encode_line(RECORD, server.said.get_records_since(1)[0])),
    ):  # not even the record; it, and no task
        monkeypatch.setattr("fedpeft.deployment.transcript.transcript.MOST_BYTES", most)
        with refuses("FP5124", "0"):
            server.sends(client, task(2))


def test_a_model_that_is_not_the_recorded_one_is_refused():
    asked = task(released=compute_digest(STATE))
    check_released(asked, STATE, ())
    check_released(asked, {**STATE, "own": torch.ones(1)}, ("own",))
    check_released(task(), {"b": torch.ones(2)}, ())
    with refuses("FP6075"):
        check_released(asked, {**STATE, "b": torch.full((2,), 1e-9)}, ())


def test_keys_that_can_not_sign_are_one_sentence(server):
    own = Credentials.load_server(server.folder / "certs")
    with refuses("FP5103"):
        Signer(replace(own, key=b"none"))
    with refuses("FP5106"):
        Verifier(b"none")
    rsa_key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with refuses("FP5104"):
        Signer(replace(own, key=rsa_key))


def test_a_server_whose_certificate_has_expired_signs_nothing_that_clients_would_refuse_ever_after(
    server, joins, monkeypatch
):
    client = joins()
    server.sends(client, server.round(task()))
    with monkeypatch.context() as patch:
        patch.setattr("fedpeft.deployment.identity.credentials.datetime", MonthLater)
        for say in (lambda: server.round(task(2)), lambda: server.said.create_statement("edge-1", task())):
            with refuses("FP5105", "FP5056", "server", "--renew", "--resume"):
                say()
        assert "expired" in server.signer.describe_objection()
    server.authority.server(["127.0.0.1"])  # renewed, and resumed
    server.signer = Signer(Credentials.load_server(server.folder / "certs"))
    server.open()
    server.sends(client, server.round(task(2)))
    assert len(client) == 2


class MonthLater(datetime):
    """A clock that goes 31 days ahead."""

    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + timedelta(days=31)

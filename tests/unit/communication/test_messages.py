"""What goes over a grid survives Flower's messages, and Flower's internals are as we use them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.communication import flower_grid
from fedpeft.communication.broadcast_digests import compute_digest
from fedpeft.communication.flower_grid import FIRST_CLIENT, MESSAGE_TYPES, OwnGrid, get_node_id
from fedpeft.communication.flower_messages import read_instruction, read_report, write_record
from fedpeft.communication.messages import Instruction, Report
from fedpeft.errors import PayloadError
from tests.refusals import refuses


class Loopback(OwnGrid):
    """Answers every instruction with a report of the same payload."""

    def __init__(self):
        super().__init__()
        self.waiting = []

    def get_node_ids(self):
        return [get_node_id(0)]

    def push_messages(self, messages):
        pushed = list(messages)
        names = [self._stamp(m) for m in pushed]
        for message in pushed:
            asked = read_instruction(message)
            self.waiting.append(
                Message(write_record(Report(asked.client, asked.round, asked.payload, rows=7)), reply_to=message)
            )
        return names

    def pull_messages(self, message_ids):
        ready, self.waiting = self.waiting[:1], self.waiting[1:]
        return ready


@given(st.binary(max_size=100), st.integers(0, 1000), st.lists(st.integers(0, 50), max_size=5).map(tuple))
def test_an_instruction_survives_the_grid(payload, client, trained):
    grid = Loopback()
    sent = Instruction("train", 3, client, payload, 0.1, 4, 8.0, trained, 2)
    message = grid.create_message(write_record(sent), MESSAGE_TYPES["train"], get_node_id(client), "3")
    assert message.metadata.dst_node_id == client + FIRST_CLIENT
    assert read_instruction(message) == sent
    [reply] = grid.send_and_receive([message])
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert read_report(reply) == Report(client, 3, payload, rows=7)


def test_a_payload_is_one_array():
    record = write_record(Instruction("train", 1, 0, b"x" * 1000))
    assert [len(a) for a in record.array_records.values()] == [1]
    [array] = record.array_records["payload"].values()
    assert (array.dtype, array.shape, array.stype) == ("uint8", (1000,), "fedpeft.v4")


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"fedpeft": ConfigRecord({"client": 1})}),
        RecordDict({"fedpeft": ConfigRecord({"unknown": 1}), "payload": ArrayRecord()}),
    ],
)
def test_another_message_is_refused(record):
    grid = Loopback()
    message = grid.create_message(record, "train", 2, "1")
    with pytest.raises(PayloadError):
        read_instruction(message)


def test_a_peer_of_another_version_is_told_so_in_one_sentence():
    record = write_record(Instruction("train", 1, 0, b"x"))
    record.array_records["payload"]["payload"].stype = "fedpeft.v1"
    record.config_records["fedpeft"]["proximal"] = 0.1
    message = Loopback().create_message(record, "train", 2, "1")
    with refuses("FP6059", "'fedpeft.v1'", "'fedpeft.v4'"):
        read_instruction(message)


def test_an_instruction_of_an_unknown_kind_is_refused():
    message = Loopback().create_message(write_record(Instruction("trian", 1, 0, b"")), "train", 2, "1")
    with refuses("FP6058", "trian", "prepare, train, evaluate"):
        read_instruction(message)


def test_flowers_internals_are_as_we_use_them():
    """If a new Flower breaks this, `fedpeft/communication/flower_grid.py` is the one place to mend."""
    Loopback()
    assert TaskIdentity.node_id == 1
    message = Message(content=RecordDict(), dst_node_id=5, message_type="train")
    message.metadata.__dict__["_message_id"] = "17"
    assert message.metadata.message_id == "17"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "17"
    grid = Loopback()
    with pytest.raises(RuntimeError, match="without a Flower run"):
        _ = grid.run
    grid.set_run("the run")
    assert grid.run == "the run"


def test_the_words_of_a_failure_are_short_and_can_be_printed():
    """Half a character can't be written into a checkpoint, an escape sequence rules the operator's terminal."""
    with pytest.raises(PayloadError, match=r"^FP6000 no memory: \\ud800 \\x1b\[2J\\n\[red\] ü$"):
        Report(1, 1, b"", error="no memory: \ud800 \x1b[2J\n[red] ü").raise_error()
    with pytest.raises(PayloadError) as raised:
        Report(1, 1, b"", error="x" * 10**6).raise_error()
    assert len(str(raised.value)) == len("FP6000 ") + 1000
    Report(1, 1, b"").raise_error()


@pytest.mark.parametrize(("name", "value"), [("round", "1"), ("round", True), ("learning_rate", "0.1")])
def test_a_field_of_another_type_is_refused(name, value):
    record = write_record(Instruction("train", 1, 0, b""))
    record.config_records["fedpeft"][name] = value
    with refuses("FP6057", name):
        read_instruction(Loopback().create_message(record, "train", 2, "1"))


@pytest.mark.parametrize("name", ["trained", "private"])
@pytest.mark.parametrize("positions", [(2, 2), (3,), (-1,)])
def test_positions_of_no_tensor_and_repeated_ones_are_refused(name, positions):
    Instruction("train", 1, 0, b"", **{name: (0, 2)}).check(3)
    with refuses("FP6054", name, "positions 0 to 2"):
        Instruction("train", 1, 0, b"", **{name: positions}).check(3)


def test_a_report_says_nothing_that_is_not_known():
    assert (Report(0, 1, b"").used, Report(0, 1, b"").joules) == (0, 0)


def test_a_grid_stops_waiting_at_its_deadline(monkeypatch):
    class Silent(Loopback):
        pulls = 0

        def pull_messages(self, message_ids):
            self.pulls += 1
            return []

    now = iter(range(100, 200))
    monkeypatch.setattr(flower_grid.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(flower_grid.time, "sleep", lambda seconds: None)
    grid = Silent()
    message = grid.create_message(
        write_record(Instruction("train", 1, 0, b"")), MESSAGE_TYPES["train"], get_node_id(0), "1"
    )
    assert grid.send_and_receive([message], timeout=5) == []
    assert grid.pulls == 4  # at seconds 101 to 104 of a deadline at 105


@pytest.mark.parametrize("wrong", [{"learning_rate": -0.1}, {"bits": float("inf")}, {"rank": 2, "alpha": 0.0}])
def test_numbers_that_train_nothing_are_refused(wrong):
    Instruction("train", 1, 0, b"", learning_rate=0.1, rank=2, alpha=4.0).check(3)
    with refuses("FP6053", list(wrong)[-1]):
        Instruction("train", 1, 0, b"", **wrong).check(3)


def test_the_digest_of_a_state_covers_names_types_shapes_and_all_bytes():
    expected = hashlib.sha256(b"a torch.float32 (3,)\n" + np.arange(3, dtype="<f4").tobytes())
    assert compute_digest({"a": torch.arange(3.0)}) == expected.hexdigest()

"""Whatever comes back over a grid: each client that was asked has one report, and nobody speaks for others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedpeft.audit.canaries import _Clients
from fedpeft.audit.canary_audit import CanaryAudit
from fedpeft.communication.downlink import Package, SentState
from fedpeft.communication.flower_grid import OwnGrid, get_node_id
from fedpeft.communication.flower_messages import read_instruction, write_record
from fedpeft.communication.messages import Instruction, Report
from fedpeft.communication.uplink import Uplink
from fedpeft.parts.families import MECHANISMS
from fedpeft.rounds import report_buffer
from fedpeft.rounds.acceptance import DecodedReport, check_statistics
from fedpeft.rounds.clock import Stopwatch
from fedpeft.rounds.exchange import Transport
from fedpeft.rounds.progress import ServerState
from tests.refusals import refuses


def with_field(name, value):
    record = write_record(Report(1, 3, b"x", rows=7))
    record["fedpeft"][name] = value
    return record


WRONG = {
    "another client's": lambda asked: write_record(Report(0, 3, b"x", rows=7)),
    "of another round": lambda asked: write_record(Report(1, 2, b"x", rows=7)),
    "rows that are a word": lambda asked: with_field("rows", "many"),
    "rows that are a fraction": lambda asked: with_field("rows", 1.5),
    "a loss that is a list": lambda asked: with_field("loss", [1, 2]),
    "an error that is a number": lambda asked: with_field("error", 1),
    "an unknown field": lambda asked: with_field("weight", 1.0),
    "an instruction": lambda asked: write_record(asked),
    "nothing": lambda asked: RecordDict(),
    "something else": lambda asked: RecordDict({"fedpeft": ConfigRecord({"client": 1})}),
}


def sent_to(client: int, round_number: int = 3) -> SentState:
    return SentState(Instruction("train", round_number, client, b""), Package(b"", {}, None))


class Peers(OwnGrid):
    """Clients that answer honestly, latest first, except client 1."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.replies = wrong, []

    def get_node_ids(self):
        return [get_node_id(client) for client in range(4)]

    def push_messages(self, messages):
        pushed = list(messages)
        names = [self._stamp(message) for message in pushed]
        for message in pushed:
            asked = read_instruction(message)
            honest = write_record(Report(asked.client, asked.round, b"x", rows=7))
            self.replies.append(Message(self.wrong(asked) if asked.client == 1 else honest, reply_to=message))
        return names

    def pull_messages(self, message_ids):
        return [self.replies.pop()] if self.replies else []


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("way", ["in_order", "first"])
def test_a_reply_that_is_no_report_costs_its_client_the_round_and_nobody_else(wrong, way):
    exchange = Transport(Peers(WRONG[wrong]), lambda *_: None)
    asked = [sent_to(client) for client in range(4)]
    reports = [report for report, _ in exchange.receive_answers(asked, 0 if way == "in_order" else 4)]
    assert [r.client for r in reports] == [0, 1, 2, 3]
    assert [r.payload for r in reports] == [b"x", b"", b"x", b"x"]
    assert reports[1].error
    assert not any(reports[k].error for k in (0, 2, 3))
    assert not exchange.pending


class Slow(Peers):
    """Clients whose answers come one by one, in the order in which they were asked; each does one thing at a time."""

    def push_messages(self, messages):
        pushed = list(messages)
        assert not {m.metadata.dst_node_id for m in pushed} & {reply.metadata.src_node_id for reply in self.replies}
        return super().push_messages(pushed)

    def pull_messages(self, message_ids):
        return [self.replies.pop(0)] if self.replies else []


def test_what_is_trained_late_is_no_answer_to_an_evaluation_and_waits_for_the_next_step():
    exchange, told = Transport(Slow(lambda asked: write_record(Report(1, asked.round, b"x", rows=7))), print), []
    exchange.answered = lambda *given: told.append(given)
    trained = [r.client for r, _ in exchange.receive_answers([sent_to(k) for k in (0, 1, 3)], 1)]
    assert (trained, set(exchange.outstanding)) == ([0], {1, 3})
    told.clear()
    asked = [Instruction("evaluate", 4, k, b"") for k in (1, 2)]
    assert [(r.client, r.round) for r in exchange.send_in_order(asked, 2, "evaluate")] == [(1, 4), (2, 4)]
    assert told == [("evaluate", 0, 2), ("evaluate", 1, 2), ("evaluate", 2, 2)]
    late = list(exchange.receive_answers([], 2))
    assert [(r.client, r.round, s.instruction.client) for r, s in late] == [(1, 3, 1), (3, 3, 3)]
    assert not exchange.outstanding
    assert not exchange.pending


def test_statistics_that_rows_can_not_have_are_refused():
    shapes = {"moments": (3,), "sums": (2, 2)}
    honest = {"moments": torch.ones(3), "sums": torch.ones(2, 2)}
    check_statistics(honest, shapes, rows=2)
    for wrong, code in (
        ({"moments": torch.ones(3)}, "FP6154"),
        (honest | {"sums": torch.full((2, 2), 3e38)}, "FP6156"),
        (honest | {"sums": torch.full((2, 2), torch.nan)}, "FP6156"),
        (honest | {"sums": torch.full((2, 2), 2e6)}, "FP6156"),
    ):
        with refuses(code):
            check_statistics(wrong, shapes, rows=2)


def test_reports_before_their_turn_are_shown_at_once_and_yielded_in_order():
    exchange, events = Transport(Peers(WRONG["nothing"]), lambda *_: None), []
    sent = [sent_to(client) for client in range(4)]
    for report, _ in exchange.receive_answers(sent, 0, lambda report: events.append(("early", report.client))):
        events.append(("turn", report.client))
    early = [("early", 3), ("early", 2), ("early", 1)]  # client 0 is the last to come, and has nobody before it
    assert events == [*early, *(("turn", client) for client in range(4))]
    list(exchange.send_in_order([s.instruction for s in sent], 4, "evaluate"))  # nobody else's reports are shown
    assert len(events) == 7


@pytest.mark.parametrize("held", [0, 5, 10**6])
def test_what_waits_is_the_same_from_memory_and_from_the_disk(tmp_path, monkeypatch, held):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(report_buffer, "HELD", held)
    waiting = report_buffer.ReportBuffer()
    reports = [
        Report(client, 3, bytes([client]) * (3 + client), rows=client, correction=bytes([9]) * client)
        for client in range(4)
    ]
    for report in reversed(reports):
        waiting.put(report)
        assert waiting.held <= held
    assert waiting.take(9) is None
    assert [waiting.take(client) for client in range(4)] == reports
    assert waiting.held == 0
    assert waiting.take(0) is None
    assert list(tmp_path.iterdir()) == []


def _reported(tmp_path):
    """Return a factory of the round's update collectors, what its clients received, and their reports."""
    audit = CanaryAudit(privacy="user_dp(noise_multiplier=1)", rounds=1, canaries=6, rate=1.0)
    made = _Clients(audit, MECHANISMS.build(audit.privacy), tmp_path, np.ones(6, bool))
    progress = ServerState(round=0, adapter=made.start)
    entry = made.protection.enter(1, progress.compute_digest(), range(6))
    asked = [
        Instruction("train", 1, k, b"", rank=made.layout.form.rank, alpha=made.layout.form.alpha) for k in entry.cohort
    ]
    sent = {i.client: SentState(i, Package(b"", progress.adapter, None)) for i in asked}
    reports = [Report(k, 1, made.create_payload(k, entry, progress.adapter), rows=1) for k in sent]
    return lambda: made.create_acceptance(made.strategy, made.layout, progress, entry), sent, reports, made.start


def test_an_update_that_waits_is_decoded_once_and_leads_to_what_it_would_have_led_to(tmp_path, monkeypatch):
    acceptance_of, sent, reports, start = _reported(tmp_path)
    decoded = []
    receive = Uplink.receive
    monkeypatch.setattr(Uplink, "receive", lambda *given: decoded.append(1) or receive(*given))
    found = {}
    for order in ("in turn", "early", "no room"):
        monkeypatch.setattr("fedpeft.rounds.acceptance.DECODED", 1 if order == "no room" else 10**9)
        acceptance = acceptance_of()
        decoded.clear()
        if order != "in turn":
            decode = acceptance.create_early_decoder(sent, Stopwatch())
            for report in reversed(reports[1:]):
                decode(report)
            assert len(decoded) == (len(reports) - 1 if order == "early" else 1)
        for report in reports:
            acceptance.add(report, sent[report.client])
        assert len(decoded) == len(reports)
        found[order] = acceptance.aggregator.finish({}).state, acceptance.results
    for order in ("early", "no room"):
        assert found[order][1] == found["in turn"][1]
        assert all(torch.equal(found[order][0][name], found["in turn"][0][name]) for name in start)


def test_room_for_decoded_updates_is_counted_once_each_and_given_back(tmp_path, monkeypatch):
    acceptance_of, sent, reports, _ = _reported(tmp_path)
    counted, size = [], DecodedReport.bytes.fget
    monkeypatch.setattr(DecodedReport, "bytes", property(lambda report: counted.append(1) or size(report)))
    acceptance = acceptance_of()
    decode = acceptance.create_early_decoder(sent, Stopwatch())
    for report in reports:
        decode(report)
    assert len(counted) == len(reports)
    for report in reports:
        acceptance.add(report, sent[report.client])
    monkeypatch.setattr("fedpeft.rounds.acceptance.DECODED", 1)
    again, decoded, receive = acceptance_of(), [], Uplink.receive
    monkeypatch.setattr(Uplink, "receive", lambda *given: decoded.append(1) or receive(*given))
    decode = again.create_early_decoder(sent, Stopwatch())
    for report in reports[:3]:
        decode(report)
    assert len(decoded) == 1
    again.add(reports[0], sent[reports[0].client])
    decode(reports[1])
    assert len(decoded) == 2

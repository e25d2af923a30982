"""Whatever comes back over a grid: each client that was asked has one report, and nobody speaks for others."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedpeft.communication.flower_grid import OwnGrid, node_of
from fedpeft.communication.messages import Instruction, Report, instruction_of, to_record
from fedpeft.errors import PayloadError
from fedpeft.server.acceptance import check_statistics
from fedpeft.server.exchange import Exchange


def with_field(name, value):
    record = to_record(Report(1, 3, b"x", rows=7))
    record["fedpeft"][name] = value
    return record


WRONG = {
    "another client's": lambda asked: to_record(Report(0, 3, b"x", rows=7)),
    "of another round": lambda asked: to_record(Report(1, 2, b"x", rows=7)),
    "rows that are a word": lambda asked: with_field("rows", "many"),
    "rows that are a fraction": lambda asked: with_field("rows", 1.5),
    "a loss that is a list": lambda asked: with_field("loss", [1, 2]),
    "an error that is a number": lambda asked: with_field("error", 1),
    "an unknown field": lambda asked: with_field("weight", 1.0),
    "an instruction": lambda asked: to_record(asked),
    "nothing": lambda asked: RecordDict(),
    "something else": lambda asked: RecordDict({"fedpeft": ConfigRecord({"client": 1})}),
}


class Peers(OwnGrid):
    """Clients that answer honestly, latest first, except client 1."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.replies = wrong, []

    def get_node_ids(self):
        return [node_of(client) for client in range(4)]

    def push_messages(self, messages):
        pushed = list(messages)
        names = [self._stamp(message) for message in pushed]
        for message in pushed:
            asked = instruction_of(message)
            honest = to_record(Report(asked.client, asked.round, b"x", rows=7))
            self.replies.append(Message(self.wrong(asked) if asked.client == 1 else honest, reply_to=message))
        return names

    def pull_messages(self, message_ids):
        return [self.replies.pop()] if self.replies else []


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("way", ["in_order", "first"])
def test_a_reply_that_is_no_report_costs_its_client_the_round_and_nobody_else(wrong, way):
    exchange = Exchange(Peers(WRONG[wrong]), lambda *_: None)
    asked = [Instruction("train", 3, client, b"") for client in range(4)]
    reports = list(exchange.in_order(asked, 4, "train") if way == "in_order" else exchange.first(asked, 4, "train"))
    assert [r.client for r in reports] == [0, 1, 2, 3]
    assert [r.payload for r in reports] == [b"x", b"", b"x", b"x"]
    assert reports[1].error
    assert not any(reports[k].error for k in (0, 2, 3))
    assert not exchange.pending


def test_statistics_that_rows_can_not_have_are_refused():
    import torch

    shapes = {"moments": (3,), "sums": (2, 2)}
    honest = {"moments": torch.ones(3), "sums": torch.ones(2, 2)}
    check_statistics(honest, shapes, rows=2)
    for wrong in (
        {"moments": torch.ones(3)},
        honest | {"sums": torch.full((2, 2), 3e38)},
        honest | {"sums": torch.full((2, 2), torch.nan)},
        honest | {"sums": torch.full((2, 2), 2e6)},
    ):
        with pytest.raises(PayloadError, match="statistics"):
            check_statistics(wrong, shapes, rows=2)

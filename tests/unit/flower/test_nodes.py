"""What users of the Flower app meet beside rounds: SuperNodes that come and go, and settings that can't be used."""

from __future__ import annotations

import logging

import pytest
from flwr.app import Context, Error, Message, RecordDict

from fedpeft.communication.flower_grid import OwnGrid, get_node_id
from fedpeft.communication.flower_messages import read_report, write_record
from fedpeft.communication.messages import Instruction, Report
from fedpeft.errors import AssetError, ConfigError
from fedpeft.flower import client_app, server_app
from fedpeft.flower.grid import UNTAKEN, FlowerGrid
from fedpeft.flower.settings import read_nodes
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses

GONE = "Node Unavailable"


class SuperLink(OwnGrid):
    """A grid of nodes that come, are ended (`ended`), or are killed and thought to be there (`silent`)."""

    def __init__(self, *nodes):
        super().__init__()
        self.there, self.silent, self.most, self.waiting = list(nodes), set(), 99, {}

    def get_node_ids(self):
        return list(self.there)

    def push_messages(self, messages):
        identifiers = [self.taken(message, self._stamp(message)) for message in messages]
        return identifiers if len(messages) <= self.most else []

    def taken(self, message, identifier):
        if message.metadata.dst_node_id not in {*self.there, *self.silent}:
            return ""
        self.waiting[identifier] = message
        return identifier

    def pull_messages(self, message_ids):
        assert all(message_ids)
        return [self.answered(self.waiting.pop(i)) for i in message_ids]

    def answered(self, asked):
        if asked.metadata.dst_node_id in self.silent:
            return Message(Error(5, GONE), reply_to=asked)
        return Message(write_record(Report(0, 1, str(asked.metadata.dst_node_id).encode())), reply_to=asked)


def asked(grid, clients):
    """Send each client a message, and return the client that answered it or the reason of the failure.

    `clients` lists the clients, or is their number.
    """
    messages = [
        grid.create_message(write_record(Instruction("train", 1, client, b"")), "train", get_node_id(client), "1")
        for client in (range(clients) if isinstance(clients, int) else clients)
    ]
    replies = {reply.metadata.reply_to_message_id: read_report(reply) for reply in grid.send_and_receive(messages)}
    reports = [replies[message.metadata.message_id] for message in messages]
    return [report.error or int(report.payload) for report in reports]


def test_a_supernode_that_was_killed_and_started_again_gets_its_clients_back():
    link, said = SuperLink(11, 12), []
    grid = FlowerGrid(link, 4, 2, say=said.append)
    assert asked(grid, 4) == [11, 12, 11, 12]
    link.there, link.silent = [12], {11}
    assert asked(grid, 4) == [f"the node failed: {GONE}", 12] * 2
    assert asked(grid, 4) == [f"the node failed: {GONE}", 12] * 2
    assert len(said) == 1
    assert said[0].startswith("node 11 is gone")
    link.there = [12, 3]
    assert asked(grid, 4) == [3, 12, 3, 12]
    assert said[1] == "node 3 takes the place of node 11, which is gone"
    assert asked(grid, 4) == [3, 12, 3, 12]


def test_a_supernode_that_was_ended_fails_its_clients_and_not_the_run():
    link = SuperLink(11, 12)
    grid = FlowerGrid(link, 2, 2)
    link.there = [12]
    assert asked(grid, 2) == [f"the node failed: {UNTAKEN}", 12]
    link.there = [12, 13]
    assert asked(grid, 2) == [13, 12]


def test_a_place_that_is_empty_is_filled_before_its_clients_are_asked_again():
    """However many rounds have asked others only since a SuperNode was missing."""
    link, said = SuperLink(11, 12), []
    grid = FlowerGrid(link, 2, 2, say=said.append)
    assert asked(grid, 2) == [11, 12]
    link.there = [12]
    assert asked(grid, [0]) == [f"the node failed: {UNTAKEN}"]
    assert asked(grid, [1]) == [12]
    link.there = [12, 13]
    assert asked(grid, [0]) == [13]
    assert len(said) == 2


def test_clients_of_a_node_that_was_gone_before_the_run_are_played_by_others():
    """Of one that was killed just before, Flower says for a minute that it is there; nobody takes its place."""
    link, said = SuperLink(11, 12, 13), []
    grid = FlowerGrid(link, 5, 2, say=said.append)
    link.there, link.silent = [12, 13], {11}
    gone = f"the node failed: {GONE}"
    assert asked(grid, 5) == [gone, 12, 13, gone, 12]
    assert asked(grid, 5) == [12, 12, 13, 12, 12]
    assert said == ["node 12 takes the place of node 11, which is gone"]
    link.there, link.silent = [13], {12}
    assert asked(grid, 5) == [gone, gone, 13, gone, gone]
    assert asked(grid, 5) == [gone, gone, 13, gone, gone]
    assert len(said) == 2
    link.there = [13, 14, 15]
    assert asked(grid, 5) == [14, 15, 13, 14, 15]


def test_a_place_whose_clients_have_kept_something_waits_for_a_supernode_started_there():
    """However often one that was started again has ended before it could answer."""
    link, said = SuperLink(11, 12), []
    grid = FlowerGrid(link, 2, 2, say=said.append)
    assert asked(grid, 2) == [11, 12]
    link.there = [12]
    asked(grid, 2)
    link.there = [12, 13]
    asked(grid, [1])  # 13 has a place, and ends before its client is asked
    link.there = [12]
    assert asked(grid, 2) == asked(grid, 2) == [f"the node failed: {UNTAKEN}", 12]
    link.there = [12, 14]
    assert asked(grid, 2) == [14, 12]


def test_a_node_that_has_come_back_and_goes_again_is_told_again():
    link, said = SuperLink(11, 12), []
    grid = FlowerGrid(link, 2, 2, say=said.append)
    for there in ([11, 12], [12], [11, 12], [12]):
        link.there = there
        for _ in range(2):
            asked(grid, 2)
    assert [line.split(":")[0] for line in said] == ["node 11 is gone"] * 2


def test_rounds_wait_while_no_supernode_is_there(monkeypatch):
    """They would all end at once, with no update."""
    monkeypatch.setattr("fedpeft.flower.grid.POLL_SECONDS", 0)
    link, said = SuperLink(11, 12), []
    grid = FlowerGrid(link, 2, 2, say=lambda text: said.append(text) or link.there.append(13))
    link.there = []
    assert asked(grid, 2) == [f"the node failed: {UNTAKEN}"] * 2
    assert asked(grid, 2)[0] == 13
    assert said[0] == "waiting for a SuperNode, since all are gone: 0 are there"


def test_messages_that_the_superlink_takes_none_of_count_as_failed():
    link = SuperLink(11, 12)
    link.most = 1
    assert asked(FlowerGrid(link, 2, 2), 2) == [f"the node failed: {UNTAKEN}"] * 2


def test_a_run_that_waits_for_nodes_says_so(monkeypatch):
    monkeypatch.setattr("fedpeft.flower.grid.POLL_SECONDS", 0)
    link, said = SuperLink(11), []
    FlowerGrid(link, 2, 2, say=lambda text: said.append(text) or link.there.append(12))
    assert said == ["waiting for 2 SuperNodes (nodes of the run config): 1 are there"]


@pytest.mark.parametrize("nodes", [0, -1, "two", 1.5, True])
def test_no_nodes_are_none_to_begin_with(nodes):
    with refuses("FP1181", nodes):
        read_nodes({"nodes": nodes})


def test_a_node_that_lacks_what_a_run_needs_says_which(monkeypatch):
    def lacking(*_):
        raise AssetError("rows.csv is not there")

    monkeypatch.setattr(client_app, "_get_workers", lacking)
    monkeypatch.setattr("fedpeft.flower.parts.check_same_parts", lambda *_: None)
    grid = FlowerGrid(SuperLink(2), 1, 1)
    message = grid.create_message(write_record(Instruction("train", 1, 0, b"")), "train", get_node_id(0), "1")
    given = {**vars(RunConfig(dataset="tiny")), "output": "runs", "nodes": 1}
    reply = client_app.app(message, Context(17, 2, {}, RecordDict(), given))
    assert read_report(reply).error == "FP2000 rows.csv is not there"


def test_what_a_user_can_mend_is_a_sentence_in_flowers_log_and_no_traceback(caplog):
    flowers = logging.getLogger("flwr")
    before = flowers.propagate
    given = {**vars(RunConfig()), "rounds": 0, "output": "runs", "nodes": 1}
    link = SuperLink(2)
    try:
        flowers.propagate = True
        with pytest.raises(ConfigError) as error:
            server_app.app(link, Context(17, 1, {}, RecordDict(), given))
        flowers.error("%s raised an exception", "ServerApp", exc_info=error.value)
        flowers.error("%s raised an exception", "ServerApp", exc_info=ValueError("a fault of the program"))
    finally:
        flowers.propagate = before
        flowers.removeFilter(server_app._shorten_record)
    sentence, fault = caplog.records
    assert (sentence.getMessage(), sentence.exc_info) == (str(error.value), None)
    assert fault.exc_info

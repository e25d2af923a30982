"""The grid of real clients: stragglers, quorums, stopping, ids."""

from __future__ import annotations

import threading
import time

import pytest

from fedpeft.communication.flower_grid import get_node_id
from fedpeft.communication.flower_messages import read_report, write_record
from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.identity.members import Roster
from fedpeft.deployment.server.grid import GrpcGrid, StoppedError
from fedpeft.deployment.wire.gateway import REPEATS
from tests.deployment.door import client, good


def push(grid, instructions, kind="train"):
    messages = [grid.create_message(write_record(i), kind, get_node_id(i.client), str(i.round)) for i in instructions]
    return grid.push_messages(messages)


def pulled(grid, count):
    replies = []
    deadline = time.monotonic() + 20
    while len(replies) < count:
        assert time.monotonic() < deadline
        replies += [read_report(m) for m in grid.pull_messages([])]
    return {r.client: r for r in replies}


def test_a_straggler_is_left_out_after_the_deadline_and_its_late_report_harms_nobody(door):
    door.roster.enter("edge-2", 0)
    grid = GrpcGrid(door.gateway, quorum=0.3, deadline=0.5, stopping=threading.Event())
    with client(door) as fast, client(door, "edge-2") as slow:
        door.roster.start()
        push(grid, [Instruction("train", 1, 0, b""), Instruction("train", 1, 1, b""), Instruction("train", 1, 2, b"")])
        late = slow.first()[0]
        assert fast.submit(fast.first()[0], good(door)) == "taken"
        replies = pulled(grid, 3)
        assert not replies[0].error
        assert replies[1].error == "no answer within 0.5 s"
        assert replies[2].error == "it has not joined"
        assert slow.submit(late, good(door, "edge-2")) == "late"
        assert door.gateway.answers.empty()


def test_a_client_that_is_late_in_every_round_is_not_dropped(door):
    door.roster.enter("edge-1", 0)
    door.roster.start()
    with door.link("edge-1").open() as connection:
        tasks = connection.iterate_tasks(door.registration())
        for round_number in range(1, REPEATS + 3):
            task = door.gateway.submit("edge-1", Instruction("train", round_number, 0, b""))
            assert next(tasks)[0] == task
            door.gateway.withdraw("edge-1", task)
            assert connection.submit(task, good(door, round_number=round_number)) == "late"
    assert not door.roster.find("edge-1").dropped


def test_without_a_quorum_the_round_waits_on(door):
    grid = GrpcGrid(door.gateway, quorum=1.0, deadline=0.1, stopping=threading.Event())
    with client(door) as connection:
        door.roster.start()
        push(grid, [Instruction("train", 1, 0, b"")])
        assert grid.pull_messages([]) == []
        assert connection.submit(connection.first()[0], good(door)) == "taken"
        assert not pulled(grid, 1)[0].error


def test_after_the_deadline_no_quorum_is_waited_for_that_can_not_come(door):
    grid = GrpcGrid(door.gateway, quorum=1.0, deadline=0.1, stopping=threading.Event())
    door.roster.enter("edge-2", 0)
    with client(door) as connection:
        door.roster.start()
        push(grid, [Instruction("train", 1, 0, b""), Instruction("train", 1, 1, b"")])
        assert grid.pull_messages([]) == []
        failed = Report(0, 1, b"", error="its privacy budget is spent")
        assert connection.submit(connection.first()[0], failed) == "taken"
        assert pulled(grid, 2)[1].error == "no answer within 0.1 s"


def test_an_evaluation_waits_for_nobody_who_is_away(door):
    grid = GrpcGrid(door.gateway, quorum=1.0, deadline=0, stopping=threading.Event(), patience=0.2)
    for name in ("edge-2", "edge-3"):
        door.roster.enter(name, 0)
    with client(door) as connection, client(door, "edge-2") as going:
        door.roster.start()
        going.__exit__()
        door.until(lambda: sum(s.connected for s in door.gateway.list_sessions()) == 1)
        time.sleep(0.3)
        push(grid, [Instruction("evaluate", 1, client, b"") for client in range(3)], "evaluate")
        assert connection.submit(connection.first()[0], good(door)) == "taken"
        assert [report.error for _, report in sorted(pulled(grid, 3).items())] == ["", "it is away", "it is away"]


def test_a_server_that_is_asked_to_stop_ends_the_round_or_gives_it_up(door, monkeypatch):
    monkeypatch.setattr("fedpeft.deployment.server.grid.STOP_SECONDS", 0.2)
    stopping = threading.Event()
    grid = GrpcGrid(door.gateway, quorum=1.0, deadline=0, stopping=stopping)
    with client(door):
        door.roster.start()
        push(grid, [Instruction("train", 1, 0, b"")])
        stopping.set()
        with pytest.raises(StoppedError):
            pulled(grid, 1)


def test_ids_are_those_of_the_sorted_names_and_late_joiners_follow(tmp_path):
    roster = Roster(tmp_path / "roster.json", 4)
    for name in ("c", "a", "b"):
        roster.enter(name, 0)
    roster.start()
    roster.enter("0-late", 0)
    again = Roster(tmp_path / "roster.json", 4)
    assert [(m.name, m.id) for m in again.members] == [("a", 0), ("b", 1), ("c", 2), ("0-late", 3)]
    assert again.enter("fifth", 0) is None
    assert again.run == roster.run

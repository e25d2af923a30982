"""Flower's own grid, as the server of an app sees it, for clients with ids: the nodes play the clients in turn.

Flower draws its node ids at random. fedpeft numbers the clients, since all randomness derives from their ids. If a node
can't answer, the server gets a report that gives the reason. A restarted SuperNode has another id, and takes the place
of the one that is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedpeft.communication.flower_grid import FIRST_CLIENT, get_node_id
from fedpeft.communication.flower_messages import read_instruction, write_record
from fedpeft.communication.messages import Report
from fedpeft.flower.parts import add_parts

POLL_SECONDS = 0.2

UNTAKEN = "Flower did not accept the message: its SuperNode ended, or the message is too large"


class FlowerGrid(Grid):
    """Clients 0 .. clients - 1 over the nodes of `grid`; waits until `nodes` of them are there.

    Each message contains the digests of the server's `parts` from outside (`fedpeft.flower.parts`). `say` receives a
    line about missing nodes, lost nodes and their replacements.
    """

    def __init__(
        self, grid: Grid, clients: int, nodes: int, parts: Sequence[str] = (), say: Callable[[str], object] = str
    ) -> None:
        """Wait until `nodes` nodes are there."""
        self._grid = grid
        self._clients = clients
        self._parts = parts
        self._say = say
        self._sent: dict[str, Message] = {}
        self._untaken: list[Message] = []
        self._look = False  # whether a node may be gone
        self._gone: set[int] = set()  # nodes whose places are empty
        self._keeping: set[int] = set()  # nodes that have answered, or replace one that has: they may hold state
        self._nodes = self._wait_for_nodes(nodes, f"{nodes} SuperNodes (nodes of the run config)")

    def _wait_for_nodes(self, least: int, waiting: str) -> list[int]:
        """Return all nodes, once there are `least` of them; until then, report that the run waits for `waiting`."""
        told = -1
        while len(found := sorted(self._grid.get_node_ids())) < least:
            if told != (told := len(found)):
                self._say(f"waiting for {waiting}: {told} are there")
            time.sleep(POLL_SECONDS)
        return found

    def _replace_gone(self) -> None:
        """Give the places of lost nodes to those that have come since. A round without any node does not begin.

        If no node has come, another one plays the clients of a lost node that has never answered, since it holds no
        state of theirs. Flower still lists a node that was killed just before the run.
        """
        there = self._wait_for_nodes(1, "a SuperNode, since all are gone")
        newcomers = sorted(set(there).difference(self._nodes), reverse=True)
        before, self._gone = self._gone, set()
        for place, node in enumerate(self._nodes):
            if node in there:
                continue
            if newcomers or node not in self._keeping:
                self._nodes[place] = newcomers.pop() if newcomers else there[place % len(there)]
                if node in self._keeping:
                    self._keeping.add(self._nodes[place])
                self._say(f"node {self._nodes[place]} takes the place of node {node}, which is gone")
                continue
            if node not in before | self._gone:
                self._say(f"node {node} is gone: its clients' updates are missing until a SuperNode takes its place")
            self._gone.add(node)

    def set_run(self, run: Run) -> None:
        """Set Flower's run information."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's run information."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to the node that plays a client (`fedpeft.communication.flower_grid.get_node_id`)."""
        if self._look:
            self._look = False
            self._replace_gone()
        node = self._nodes[(dst_node_id - FIRST_CLIENT) % len(self._nodes)]
        return Message(add_parts(content, self._parts), node, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of all clients."""
        return (get_node_id(client) for client in range(self._clients))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to Flower; refused ones, as for an ended SuperNode, count as failed. Return all ids."""
        batch = list(messages)
        taken: list[str | None] = list(self._grid.push_messages(batch)) or [None] * len(batch)  # none at all: too large
        self._untaken += [message for identifier, message in zip(taken, batch, strict=True) if not identifier]
        identifiers = [message.metadata.message_id for message in batch]
        self._sent |= dict(zip(identifiers, batch, strict=True))
        self._look |= bool(self._gone)  # before the next messages: other nodes may play their clients
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived, after a moment's wait if there are none."""
        untaken, self._untaken = self._untaken, []
        failed = [self._create_failure(message, UNTAKEN) for message in untaken]
        waiting = [identifier for identifier in message_ids or self._sent if identifier in self._sent]
        replies = list(self._grid.pull_messages(waiting)) if waiting else []
        if not replies and not failed:
            time.sleep(POLL_SECONDS)
        return failed + [self._check_reply(reply) for reply in replies]

    def _check_reply(self, reply: Message) -> Message:
        asked = self._sent[reply.metadata.reply_to_message_id]
        if reply.has_error():
            return self._create_failure(asked, reply.error.reason)
        del self._sent[asked.metadata.message_id]
        self._keeping.add(asked.metadata.dst_node_id)
        return reply

    def _create_failure(self, asked: Message, reason: str | None) -> Message:
        """Return the reply in place of a node that can't give one."""
        self._look = True
        del self._sent[asked.metadata.message_id]
        instruction = read_instruction(asked)
        report = Report(instruction.client, instruction.round, b"", error=f"the node failed: {reason}")
        return Message(write_record(report), reply_to=asked)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull until every reply has arrived or `timeout` seconds are over."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = self.pull_messages(waiting)
            waiting -= {m.metadata.reply_to_message_id for m in arrived}
            replies += arrived
        return replies

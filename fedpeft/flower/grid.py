"""Flower's own grid, as the server of an app sees it, for clients with ids: client k is played by node k, in turn.

Flower's node ids are drawn at random; clients are numbered, since all that is random derives from their ids. What a
node can't answer becomes a report that says so. A SuperNode that is started again has another id, and takes the place
of the one that is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedpeft.communication.flower_grid import FIRST_CLIENT, get_node_id
from fedpeft.communication.messages import Report, read_instruction, write_record
from fedpeft.flower.parts import add_parts

POLL_SECONDS = 0.2

UNTAKEN = "Flower takes no message for it, since its SuperNode has ended or the message is too large"


class FlowerGrid(Grid):
    """Clients 0 .. clients - 1 over the nodes of `grid`; waits until `nodes` of them are there.

    Each message tells the `parts` from outside that the server has (`fedpeft.flower.parts`). `say` is told in a line
    whom the run waits for, which node is gone, and which has taken its place.
    """

    def __init__(
        self, grid: Grid, clients: int, nodes: int, parts: Sequence[str] = (), say: Callable[[str], object] = str
    ) -> None:
        self._grid = grid
        self._clients = clients
        self._parts = parts
        self._say = say
        self._sent: dict[str, Message] = {}
        self._untaken: list[Message] = []
        self._look = False  # whether a node may be gone
        self._gone: set[int] = set()  # whose places are empty
        self._keeping: set[int] = set()  # who has answered, or is where one was that has: something may lie there
        self._nodes = self._wait_for_nodes(nodes, f"{nodes} SuperNodes (nodes of the run config)")

    def _wait_for_nodes(self, least: int, waiting: str) -> list[int]:
        """All that are there, once they are enough; until then it says for what it is `waiting`."""
        told = -1
        while len(found := sorted(self._grid.get_node_ids())) < least:
            if told != (told := len(found)):
                self._say(f"waiting for {waiting}: {told} are there")
            time.sleep(POLL_SECONDS)
        return found

    def _replace_gone(self) -> None:
        """Give the places of nodes that are gone to those that have come since; rounds of nobody are not begun.

        Where nobody has come, clients of a node that has never answered are played by another, since nothing of theirs
        lies with it; of one that was killed just before the run Flower says that it is there.
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
        """Flower's run information."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's run information."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to the node that plays a client (`fedpeft.communication.flower_grid.get_node_id`)."""
        if self._look:
            self._look = False
            self._replace_gone()
        node = self._nodes[(dst_node_id - FIRST_CLIENT) % len(self._nodes)]
        return Message(add_parts(content, self._parts), node, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All clients."""
        return (get_node_id(client) for client in range(self._clients))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand them to Flower; what it does not take, as for a SuperNode that has been ended, counts as failed."""
        batch = list(messages)
        taken: list[str | None] = list(self._grid.push_messages(batch)) or [None] * len(batch)  # none at all: too large
        self._untaken += [message for identifier, message in zip(taken, batch, strict=True) if not identifier]
        identifiers = [message.metadata.message_id for message in batch]
        self._sent |= dict(zip(identifiers, batch, strict=True))
        self._look |= bool(self._gone)  # with the next ones: their clients may be others
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have arrived; waits a moment where there are none."""
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
        """The reply of a node that can't give one."""
        self._look = True
        del self._sent[asked.metadata.message_id]
        instruction = read_instruction(asked)
        report = Report(instruction.client, instruction.round, b"", error=f"the node failed: {reason}")
        return Message(write_record(report), reply_to=asked)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull until every reply is there or `timeout` seconds are over."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = self.pull_messages(waiting)
            waiting -= {m.metadata.reply_to_message_id for m in arrived}
            replies += arrived
        return replies

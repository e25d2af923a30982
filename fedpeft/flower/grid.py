"""Flower's own grid, as the server of an app sees it, for clients with ids: client k is played by node k, in turn.

Flower's node ids are drawn at random; clients are numbered, since all that is random derives from their ids. What a
node can't answer becomes a report that says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedpeft.communication.flower_grid import FIRST_CLIENT, node_of
from fedpeft.communication.messages import Report, instruction_of, to_record
from fedpeft.errors import ConfigError
from fedpeft.flower.parts import with_parts

POLL_SECONDS = 0.2


class FlowerGrid(Grid):
    """Clients 0 .. clients - 1 over the nodes of `grid`; waits until `nodes` of them, at least 1, are there.

    Each message tells the `parts` from outside that the server has (`fedpeft.flower.parts`).

    Raises:
        ConfigError: fewer.
    """

    def __init__(self, grid: Grid, clients: int, nodes: int, parts: Sequence[str] = ()) -> None:
        if nodes < 1:
            raise ConfigError(f"nodes={nodes} of the run config must be at least 1: clients are played by nodes")
        self._grid = grid
        self._clients = clients
        self._parts = parts
        self._sent: dict[str, Message] = {}
        self._nodes = sorted(grid.get_node_ids())
        while len(self._nodes) < nodes:
            time.sleep(POLL_SECONDS)
            self._nodes = sorted(grid.get_node_ids())

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
        """A message to the node that plays a client (`fedpeft.communication.flower_grid.node_of`)."""
        node = self._nodes[(dst_node_id - FIRST_CLIENT) % len(self._nodes)]
        return self._grid.create_message(with_parts(content, self._parts), message_type, node, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All clients."""
        return (node_of(client) for client in range(self._clients))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand them to Flower."""
        batch = list(messages)
        identifiers = list(self._grid.push_messages(batch))
        self._sent |= dict(zip(identifiers, batch, strict=True))
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have arrived; waits a moment where there are none."""
        replies = list(self._grid.pull_messages(list(message_ids) or list(self._sent)))
        if not replies:
            time.sleep(POLL_SECONDS)
        return [self._answered(reply) for reply in replies]

    def _answered(self, reply: Message) -> Message:
        asked = self._sent.pop(reply.metadata.reply_to_message_id)
        if not reply.has_error():
            return reply
        instruction = instruction_of(asked)
        report = Report(instruction.client, instruction.round, b"", error=f"the node failed: {reply.error.reason}")
        return Message(to_record(report), reply_to=asked)

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

"""Access to Flower's internals: messages outside Flower's own processes, and the base class of our grids.

Outside its processes Flower makes a `Message` only once `flwr.supercore.task_identity.TaskIdentity` is set, and message
ids are set by its SuperLink; neither is public. A contract test watches both.
"""

from __future__ import annotations

import itertools
import time
from abc import abstractmethod
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = 1
"""Node id of the server; client k is node k + FIRST_CLIENT."""

FIRST_CLIENT = 2

MESSAGE_TYPES = {"prepare": "query", "train": "train", "evaluate": "evaluate", "sum": "query"}
"""Flower's message type for each kind of instruction."""

POLL_SECONDS = 0.01


def get_node_id(client: int) -> int:
    """Return Flower's node id of a client in our own grids."""
    return client + FIRST_CLIENT


def set_identity() -> None:
    """Allow code outside of Flower's own processes to make messages."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = SERVER_NODE


def allow_local_messages() -> None:
    """Allow this process to make messages; inside Flower that works already, and its identity stays."""
    if TaskIdentity._node_id is None:
        set_identity()


def create_local_reply(client: int, content: RecordDict) -> Message:
    """Return a client's reply in the form that Flower's strategies read, made in this process from decoded content."""
    allow_local_messages()
    asked = Message(content=RecordDict(), dst_node_id=get_node_id(client), message_type=MESSAGE_TYPES["train"])
    return Message(content, reply_to=asked)


class OwnGrid(Grid):
    """The common base of fedpeft's grids: message ids, and waiting for replies."""

    def __init__(self) -> None:
        """Allow messages in this process, and start to count message ids."""
        set_identity()
        self._run: Run | None = None
        self._ids = itertools.count(1)

    def set_run(self, run: Run) -> None:
        """Hold Flower's run information, which our grids do not need."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's run information.

        Raises:
            RuntimeError: nobody has set it.
        """
        if self._run is None:
            raise RuntimeError("this grid runs without a Flower run")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return Message(content=content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def _stamp(self, message: Message) -> str:
        """Give a message its id."""
        identifier = str(next(self._ids))
        message.metadata.__dict__["_message_id"] = identifier
        return identifier

    @abstractmethod
    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived; each is returned once."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push messages, then pull until every reply has arrived or `timeout` seconds have passed."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = self.pull_messages(waiting)
            waiting -= {m.metadata.reply_to_message_id for m in arrived}
            replies += arrived
            if not arrived:
                time.sleep(POLL_SECONDS)
        return replies

"""The in-process grid: it sees the whole cohort at once, so that many clients can be trained in one pass.

Clients are grouped by a pure function of the cohort: sorted by their expected work (most first, then by examples and
id) and cut into groups (`fedpeft.simulation.schedule`). Groups go to whichever worker is free, the largest first. The
composition of a group, and with it every bit of the result, does not depend on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

import numpy as np
from flwr.app import Message

from fedpeft.clients.pool import Pool, Worker, get_result
from fedpeft.communication.flower_grid import FIRST_CLIENT, MESSAGE_TYPES, OwnGrid, get_node_id
from fedpeft.communication.flower_messages import read_instruction, write_record
from fedpeft.communication.messages import Report
from fedpeft.simulation.schedule import cut


class CohortGrid(OwnGrid):
    """Clients 0 .. len(rows) - 1, simulated by the workers of a pool.

    Args:
        pool: the workers.
        rows: example count of each client, (clients,).
        group_size: the most clients in one group.
        steps: returns the steps of a client in a round of training.
    """

    def __init__(self, pool: Pool, rows: np.ndarray, group_size: int, steps: Callable[[int], int]) -> None:
        """Hold the workers and the costs of clients."""
        super().__init__()
        self.steps = steps
        self.pool = pool
        self.rows = rows
        self.group_size = group_size
        self._running: dict[Future[list[Report]], list[Message]] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of all clients."""
        return (get_node_id(client) for client in range(len(self.rows)))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Group the cohort and hand the groups to the workers; return the messages' ids."""
        batch = list(messages)
        identifiers = [self._stamp(message) for message in batch]
        for group in self._group_messages(batch):
            instructions = [read_instruction(message) for message in group]
            self._running[self.pool.submit(Worker.handle, instructions)] = group
        return identifiers

    def _group_messages(self, messages: Sequence[Message]) -> list[list[Message]]:
        """Return groups of similar work, small enough that every worker has a part."""
        costs = {m.metadata.message_id: self._estimate_cost(m) for m in messages}
        ordered = sorted(messages, key=lambda m: (*(-c for c in costs[m.metadata.message_id]), m.metadata.dst_node_id))
        each = [float(costs[m.metadata.message_id][0]) for m in ordered]
        groups, start = [], 0
        for size in cut(each, self.group_size, self.pool.workers):
            groups.append(ordered[start : start + size])
            start += size
        return groups

    def _estimate_cost(self, message: Message) -> tuple[int, int]:
        """Return a client's expected steps (if it does not train, its example count), and its example count."""
        client = message.metadata.dst_node_id - FIRST_CLIENT
        rows = int(self.rows[client])
        return self.steps(client) if message.metadata.message_type == MESSAGE_TYPES["train"] else rows, rows

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return replies of the groups that have finished; wait for the next one if none has."""
        if not self._running:
            return []
        done = wait(self._running, return_when=FIRST_COMPLETED).done
        finished = [future for future in self._running if future in done]  # a set has another order in each process
        replies = []
        for future in finished:
            group = self._running.pop(future)
            reports = get_result(future)
            for message, report in zip(group, reports, strict=True):
                replies.append(Message(write_record(report), reply_to=message))
        return replies

"""The comparison with FlowerTune's template: its rows, and both sides on a tiny model."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from experiments.flowertune.rows import make_rows
from experiments.flowertune.settings import SideResult


def right(row):
    words = row["instruction"].replace(".", "").replace(",", "").replace("?", "").replace(":", "").split()
    if words[0] == "Add":
        return str(int(words[1]) + int(words[3]))
    if words[0] == "Which":
        return str(max(int(words[-3]), int(words[-1])))
    if words[0] == "Say":
        return words[-1]
    return f"{words[3]} {words[3]}" if words[-1] == "twice" else words[1].upper()


def test_answers_are_right_and_equal_seeds_give_equal_rows():
    rows = make_rows(200, 3)
    assert rows == make_rows(200, 3) != make_rows(200, 4)
    assert all(row["output"] == right(row) and row["input"] == "" for row in rows)
    assert len({row["instruction"].split()[0] for row in rows}) == 4


@pytest.mark.medium
def test_equal_seeds_ask_equal_clients_whatever_flower_calls_its_nodes():
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.serverapp.strategy import FedAvg

    from experiments.flowertune.template import SequentialGrid, create_messages, sort_nodes, which

    class Numbered(SequentialGrid):
        """Clients whose nodes are numbered by chance, and listed in another order each time."""

        def __init__(self, numbers):
            super().__init__(len(numbers))
            self.numbers, self.turn = numbers, 0

        def get_node_ids(self):
            self.turn += 1
            return [*self.numbers[self.turn % 4 :], *self.numbers[: self.turn % 4]]

        def push_messages(self, messages):
            given = list(messages)
            identifiers = [self._stamp(message) for message in given]
            for message in given:
                client = self.numbers.index(message.metadata.dst_node_id)
                self._replies.append(which(message, SimpleNamespace(node_config={"partition-id": client})))
            return identifiers

    found = []
    for seed, numbers in ((0, [77, 5, 312, 9]), (0, [4, 8211, 63, 12]), (1, [4, 8211, 63, 12])):
        grid = Numbered(numbers)
        assert sort_nodes(grid, 4) == numbers
        grid.get_node_ids = lambda numbers=numbers: numbers
        strategy = FedAvg(fraction_train=0.5, fraction_evaluate=0.0)
        rounds = [create_messages(strategy, seed, n, ArrayRecord(), ConfigRecord(), grid) for n in range(1, 7)]
        found.append([[numbers.index(m.metadata.dst_node_id) for m in messages] for messages in rounds])
    assert found[0] == found[1] != found[2]
    assert len({tuple(drawn) for drawn in found[0]}) > 1


def test_differences_are_paired_by_seed():
    from experiments.flowertune.__main__ import build_table

    def found(side, seed, loss):
        return SideResult(
            side, seed, **dict.fromkeys([f.name for f in dataclasses.fields(SideResult)[2:]], 1) | {"loss": loss}
        )

    losses = {"template": (0.8, 0.6, 0.7), "ours": (0.5, 0.3, 0.1)}  # differences -0.3, -0.3, -0.6
    made = [found(side, seed, loss) for side, each in losses.items() for seed, loss in enumerate(each)]
    shown = build_table(made)
    cells = dict(zip(shown.columns[0].cells, shown.columns[3].cells, strict=True))
    assert cells["loss"] == "-0.400 (-0.830 to +0.030)"  # 4.303 * 0.1732 / sqrt(3)
    assert len(build_table(made[:5]).columns) == 4
    assert len(build_table(made[:4]).columns) == 3  # one seed has no interval
    assert len(build_table(made[:3]).columns) == 2  # one side alone
    assert len(build_table(made[2:4]).columns) == 3  # no seed that both have

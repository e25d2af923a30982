"""Flower's own strategies, on the decoded tensors of a round: `flower(rule="FedMedian")`.

    x <- rule(x_1, ..., x_K),   x_k = received_k + delta_k: float arrays with the same keys at all clients

These strategies see factors and not their effect on the weights. Two clients whose LoRA products agree may look far
apart, and a mean of factors is not the factors of the mean. `median`, `trimmed_mean` and `krum` work in the geometry of
the product. Flower's adaptive strategies (FedAdam, FedYogi, ...) keep moments: use `--server-optimizer` instead. To use
another class, of Flower's or your own, see `fedpeft.flower.strategy.wrap_strategy`. `docs/decisions.md` gives the
reasons why Flower's DP wrappers are left out.

Source: https://github.com/flwrlabs/flower, flwr.serverapp.strategy, version 1.42.

Use it to run a rule that Flower ships, for example to compare with it.
"""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from fedpeft.aggregation.strategy import Aggregate, Read, RoundStrategy
from fedpeft.aggregation.update import Update, normalize_weights
from fedpeft.communication.flower_grid import create_local_reply
from fedpeft.errors import RunError
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout, State

SETTINGS: dict[str, tuple[str, ...]] = {
    "FedAvg": (),
    "FedMedian": (),
    "FedTrimmedAvg": ("beta",),
    "Krum": ("num_malicious_nodes",),
    "MultiKrum": ("num_malicious_nodes", "num_nodes_to_select"),
    "Bulyan": ("num_malicious_nodes",),
}
"""Strategies that keep nothing between rounds, and their own arguments."""


@dataclass(frozen=True)
class Flower(RoundStrategy):
    """A strategy of Flower's by name."""

    rule: str = setting("FedMedian", "name of the class in flwr.serverapp.strategy", choices=tuple(SETTINGS))
    beta: float = setting(0.2, "FedTrimmedAvg: the share cut off at either end", low=0, below=0.5)
    num_malicious_nodes: int = setting(0, "Krum, MultiKrum, Bulyan: how many clients may be hostile", low=0)
    num_nodes_to_select: int = setting(1, "MultiKrum: how many clients are averaged", low=1)

    needs_lora: ClassVar[bool] = False

    def aggregate(self, state: State, layout: Layout, read: Read, round_number: int, seed: int) -> Aggregate:
        """Replace the trained tensors by the rule's arrays, with the whole cohort in memory.

        Raises:
            ConfigError: no updates.
            RunError: the cohort is too small for the rule.
        """
        trained = tuple(sorted(self.list_trained(layout, round_number)))
        updates = read(trained)
        shares = normalize_weights([u.weight for u in updates])
        replies = [_create_reply(u, share, trained) for u, share in zip(updates, shares, strict=True)]
        logging.getLogger("flwr").setLevel(logging.ERROR)  # it logs each call, and a refusal is an error below
        arrays, _ = self._create_rule().aggregate_train(round_number, replies)
        if arrays is None:
            raise RunError(
                f"FP5239 Flower's {self.rule} with num_malicious_nodes={self.num_malicious_nodes} refuses a cohort of "
                f"{len(replies)} clients; it needs more of them (Bulyan 4 times as many, plus 3)"
            )
        after = {name: tensor.clone() for name, tensor in state.items()}
        for name in trained:
            after[name] = torch.from_numpy(np.array(arrays[name].numpy())).to(state[name].dtype)
        return Aggregate(after, {})

    def _create_rule(self) -> Any:
        return getattr(flower, self.rule)(**{name: getattr(self, name) for name in SETTINGS[self.rule]})


def _create_reply(update: Update, share: float, names: tuple[str, ...]) -> Message:
    arrays = ArrayRecord({name: Array(update.get_trained(name).numpy()) for name in names})
    return create_local_reply(
        update.client, RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": share})})
    )


part = Flower

"""How large a trial is, before it is trained: parameters, and bytes of a client's update."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from fedpeft import seeds
from fedpeft.config import RunConfig
from fedpeft.errors import ConfigError
from fedpeft.models.base_model import resolve_model
from fedpeft.models.layers import count_layers
from fedpeft.models.task import TASKS
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.tuning.search_file import Budget, Search
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.profiles import count_clients, load_groups
from fedpeft.wiring.setup import Setup

TYPICAL = 1e-3
"""Deviation of the entries of the update whose bytes are counted."""


@dataclass(frozen=True)
class Size:
    """Of a trial: `parameters` that are trained and exchanged, and `bytes` of a client's update."""

    parameters: int
    bytes: int

    def is_within(self, budget: Budget | None) -> bool:
        """Whether a budget allows it."""
        return budget is None or getattr(self, budget.unit) <= budget.most

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters, {self.bytes:,} bytes an update"


class Sizes:
    """Of the trials of a search; rows are read once for each data set and partition, and let go again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._facts: dict[tuple[object, ...], DatasetInfo] = {}
        self._known: dict[RunConfig, Size] = {}

    def facts(self, config: RunConfig) -> DatasetInfo:
        """Of the rows of a configuration."""
        key = (config.dataset, config.partition, config.clients, config.ranks)
        if key not in self._facts:
            groups = load_groups(config.ranks, config.clients, self._folder)
            self._facts[key] = SimulatedRows.load(config, count_clients(config.clients, groups)).facts
        return self._facts[key]

    def count_blocks(self, config: RunConfig) -> int:
        """How many transformer blocks the base has."""
        facts = self.facts(config)
        folder = resolve_model(facts.default_model if config.model == "auto" else config.model)
        return count_layers(TASKS.build(facts.task).base(folder, torch.float32))

    def of(self, config: RunConfig) -> Size:
        """Of one trial: what the largest client trains and sends.

        The update is made of noise: a codec that leaves zeros out, or packs by frequency, takes more or less for a real
        one.

        Raises:
            FedpeftError: settings that do not fit each other, the data or the model.
        """
        alike = dataclasses.replace(config, learning_rate=RunConfig().learning_rate)
        if alike not in self._known:
            self._known[alike] = self._measure(config)
        return self._known[alike]

    def _measure(self, config: RunConfig) -> Size:
        groups = load_groups(config.ranks, config.clients, self._folder)
        setup = Setup.create(config, self.facts(config), groups)
        names = setup.strategy.list_trained(setup.layout, 1) - setup.strategy.list_private(setup.layout)
        noise = seeds.create_torch_generator(0, "size", 0)
        update = {
            t.name: TYPICAL * torch.randn(t.shape, generator=noise) for t in setup.layout.tensors if t.name in names
        }
        if setup.lossless == "fp64":
            update = {name: tensor.double() for name, tensor in update.items()}
        payload, _ = setup.uplink.encode(update, {}, bits=0, seed=0, trained=setup.start, layout=setup.layout)
        return Size(setup.layout.numel, len(payload))


def count_blocks(search: Search, sizes: Sizes) -> int:
    """How many transformer blocks the bases of a search have.

    Raises:
        ConfigError: one has more than another.
    """
    (first, blocks), *others = [(name, sizes.count_blocks(config)) for name, config in search.list_models().items()]
    for name, found in others:
        if found != blocks:
            raise ConfigError(
                f"FP1481 {search.path}: models of a [hybrid] search must have the same number of blocks: {first} has "
                f"{blocks}, {name} has {found}; leave one of them out"
            )
    return blocks


def check_smallest(search: Search, sizes: Sizes, blocks: int) -> None:
    """Refuse a budget under which no hybrid can be.

    Raises:
        ConfigError: even the smallest one is larger.
    """
    if search.hybrid is None or search.budget is None:
        return
    found: dict[str, Size] = {}
    for text in search.hybrid.iterate_smallest(blocks):
        found[text] = sizes.of(dataclasses.replace(search.build_corner({}, blocks), peft=text))
        if found[text].is_within(search.budget):
            return
    unit = search.budget.unit
    smallest = min(found, key=lambda text: int(getattr(found[text], unit)))
    raise ConfigError(
        f"FP1482 {search.path}: no hybrid is within the budget of {search.budget}: the smallest, {smallest}, has "
        f"{getattr(found[smallest], unit):,}, the head's among them; raise the budget or name smaller sizes"
    )

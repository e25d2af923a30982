"""The size of a trial before training: parameters, bytes of a client's update, and the energy of all clients."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from fedpeft.errors import ConfigError
from fedpeft.machine import seeds
from fedpeft.models.base_model import resolve_model
from fedpeft.models.layers import count_layers
from fedpeft.parts.families import TASKS
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.tune.energy import PredictedEnergy, predict_energy
from fedpeft.tune.search_file import Budget, Search
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.profiles import count_clients, load_groups
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup

TYPICAL = 1e-3
"""Standard deviation of the random update whose bytes are counted."""


@dataclass(frozen=True)
class Size:
    """A trial's size.

    Attributes:
        parameters: trained and exchanged numbers.
        bytes: bytes of a client's update.
        joules: predicted energy of all clients in all rounds; 0: the run does not measure it.
        grams: their grams of CO2; 0: nothing states how clean the power is.
    """

    parameters: int
    bytes: int
    joules: float = 0.0
    grams: float = 0.0

    def is_within(self, budget: Budget | None) -> bool:
        """Return whether the size is within a budget; None allows any size."""
        return budget is None or all(getattr(self, unit) <= most for unit, most in budget.most.items())

    def __str__(self) -> str:
        """Return the size as readable text."""
        joules = f", {self.joules:,.4g} J" if self.joules else ""
        grams = f", {self.grams:,.3g} g of CO2" if self.grams else ""
        return f"{self.parameters:,} parameters, {self.bytes:,} bytes an update{joules}{grams}"


class Sizes:
    """The sizes of a search's trials; each dataset and partition is read once and then released."""

    def __init__(self, folder: Path) -> None:
        """Hold the folder that relative paths of settings start from."""
        self._folder = folder
        self._facts: dict[tuple[object, ...], tuple[DatasetInfo, list[int]]] = {}
        self._known: dict[RunConfig, Size] = {}

    def facts(self, config: RunConfig) -> DatasetInfo:
        """Return the dataset info of a configuration."""
        return self._read(config)[0]

    def _read(self, config: RunConfig) -> tuple[DatasetInfo, list[int]]:
        """Return the dataset info of a configuration, and the training examples of each client."""
        key = (config.dataset, config.partition, config.clients, config.ranks)
        if key not in self._facts:
            groups = load_groups(config.ranks, config.clients, self._folder)
            rows = SimulatedRows.load(parse_run(config), count_clients(config.clients, groups))
            counts = [len(rows.partition.shard(client)) for client in range(len(rows.partition))]
            self._facts[key] = rows.facts, counts
        return self._facts[key]

    def count_blocks(self, config: RunConfig) -> int:
        """Return the number of transformer blocks of the base model."""
        facts = self.facts(config)
        folder = resolve_model(facts.default_model if config.model == "auto" else config.model)
        return count_layers(TASKS.build(facts.task).base(folder, torch.float32))

    def of(self, config: RunConfig) -> Size:
        """Return the size of one trial: what the largest client trains and sends.

        The update is random noise. A codec that omits zeros or packs by frequency may need more or fewer bytes for a
        real update.

        Raises:
            FedpeftError: the settings do not fit together, the data or the model.
        """
        alike = dataclasses.replace(config, learning_rate=RunConfig().learning_rate)
        if alike not in self._known:
            self._known[alike] = self._measure(config)
        return self._known[alike]

    def _measure(self, config: RunConfig) -> Size:
        groups = load_groups(config.ranks, config.clients, self._folder)
        facts, rows = self._read(config)
        setup = Setup.create(parse_run(config), facts, groups)
        names = setup.strategy.list_trained(setup.layout, 1) - setup.strategy.list_private(setup.layout)
        noise = seeds.create_torch_generator(0, "size", 0)
        update = {
            t.name: TYPICAL * torch.randn(t.shape, generator=noise) for t in setup.layout.tensors if t.name in names
        }
        if config.dtype == "fp64":
            update = {name: tensor.double() for name, tensor in update.items()}
        payload, _ = setup.uplink.encode(update, {}, bits=0, seed=0, trained=setup.start, layout=setup.layout)
        energy = predict_energy(setup, rows, len(payload)) or PredictedEnergy(0.0, 0.0)
        return Size(setup.layout.numel, len(payload), energy.joules, energy.grams)


def count_blocks(search: Search, sizes: Sizes) -> int:
    """Return the number of transformer blocks of a search's base models.

    Raises:
        ConfigError: the base models have different numbers of blocks.
    """
    (first, blocks), *others = [(name, sizes.count_blocks(config)) for name, config in search.list_models().items()]
    for name, count in others:
        if count != blocks:
            raise ConfigError(
                f"FP1481 {search.path}: models of a [hybrid] search must have the same number of blocks: {first} has "
                f"{blocks}, {name} has {count}; leave one of them out"
            )
    return blocks


def check_smallest(search: Search, sizes: Sizes, blocks: int) -> None:
    """Refuse a budget that even the smallest hybrid exceeds, and grams without a known intensity.

    Raises:
        ConfigError: the smallest hybrid is larger than the budget, or nothing states how clean the power is.
    """
    if "grams" in search.bounded_units and not sizes.of(search.build_corner({}, blocks)).grams:
        raise ConfigError(
            f"FP1835 {search.path}: grams need the grams of CO2 per kWh; set energy(intensity=...) in measure, or "
            "intensity in the tables of clients"
        )
    if search.hybrid is None or search.budget is None:
        return
    by_text: dict[str, Size] = {}
    for text in search.hybrid.iterate_smallest(blocks):
        by_text[text] = sizes.of(dataclasses.replace(search.build_corner({}, blocks), peft=text))
        if by_text[text].is_within(search.budget):
            return
    unit = next(iter(search.budget.most))
    smallest = min(by_text, key=lambda text: float(getattr(by_text[text], unit)))
    raise ConfigError(
        f"FP1482 {search.path}: no hybrid is within the budget of {search.budget}: the smallest, {smallest}, has "
        f"{by_text[smallest]}, including the head; raise the budget or name smaller sizes"
    )

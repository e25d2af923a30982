"""The settings of a run as typed parts.

`parse_run` is the only place where the texts of a run's settings become parts. Modules behind it read the parts. The
texts stay in `RunSpec.config` for records, checkpoints, other machines and messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fedpeft.aggregation.head_start import HeadStart
from fedpeft.aggregation.safeguard import Safeguard
from fedpeft.aggregation.server_optimizer import ServerOptimizer
from fedpeft.aggregation.strategy import Strategy
from fedpeft.clients.attack import Attack
from fedpeft.clients.drift import Drift
from fedpeft.clients.local_training import LocalTraining
from fedpeft.communication.codec import Codec, parse_codec
from fedpeft.communication.downlink import parse_downlink
from fedpeft.communication.uplink import Uplink, parse_uplink
from fedpeft.data.partition import Partitioner
from fedpeft.data.rows import Source
from fedpeft.peft.method import PeftMethod
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.secure_sum.sum import SecureSum, sums_under
from fedpeft.wiring.catalogue import build_part
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.grid import SimulationGrid
from fedpeft.wiring.measurements import Measurements
from fedpeft.wiring.sampling import AwareSampler, compute_cohort_size

if TYPE_CHECKING:
    from fedpeft.rounds.user_hook import UserHook


@dataclass(frozen=True)
class RunSpec:
    """The settings of a run, each as the part that its text describes.

    Attributes:
        config: the settings as numbers and texts.
        dataset: the dataset.
        partitioner: how the dataset is split over clients; None: `auto`.
        sampler: the choice of clients by what is known of them; None: cohorts are drawn.
        method: the PEFT method; None: `auto`.
        head: the start of the head; None: `auto`.
        strategy: the aggregation rule.
        server_optimizer: the server optimizer.
        safeguard: the check of each step; None: `auto`.
        drift: the corrections of client drift; none for `auto`.
        training: the local training.
        uplink: the codec of updates.
        downlink: the codec of the model.
        lossless: the codec of everything else: fp32, or fp64 in runs of that precision.
        mechanism: the privacy mechanism; None: no protection.
        secure_sum: the secure sum of updates; None: the server sees each update.
        attack: what hostile clients do; None: all clients are honest.
        grid: where simulated clients run.
        measured: the measurements.
        hooks: a user's own features of the round loop.
    """

    config: RunConfig
    dataset: Source
    partitioner: Partitioner | None
    sampler: AwareSampler | None
    method: PeftMethod | None
    head: HeadStart | None
    strategy: Strategy
    server_optimizer: ServerOptimizer
    safeguard: Safeguard | None
    drift: Drift
    training: LocalTraining
    uplink: Uplink
    downlink: Codec
    lossless: Codec
    mechanism: Mechanism | None
    secure_sum: SecureSum | None
    attack: Attack | None
    grid: SimulationGrid
    measured: Measurements
    hooks: tuple[UserHook, ...]

    @property
    def is_private_per_example(self) -> bool:
        """Whether a mechanism bounds the gradient of each example."""
        return self.mechanism is not None and self.mechanism.per_example

    @property
    def is_private(self) -> bool:
        """Whether a privacy mechanism protects examples or clients."""
        return self.mechanism is not None and self.mechanism.protects

    def change(self, **settings: Any) -> Self:
        """Return the run with other numbers and texts for some settings; only these are parsed.

        Raises:
            ConfigError: a text describes no part.
        """
        config = replace(self.config, **settings)
        parsers = dict.fromkeys(_PARSERS[name] for name in settings if name in _PARSERS)
        parts: dict[str, Any] = {}
        for parse in parsers:
            parts |= parse(config)
        return _compact_head(replace(self, config=config, **parts))

    def compute_cohort_size(self, clients: int) -> int:
        """Return the number of clients that a round asks, of `clients` in all.

        Raises:
            ConfigError: the cohort is empty or larger than the population.
        """
        return compute_cohort_size(self.config.cohort if self.sampler is None else self.sampler.size, clients)


def parse_run(config: RunConfig) -> RunSpec:
    """Return the parts that the settings of a run describe.

    Raises:
        FedpeftError: a text describes no part.
    """
    parts: dict[str, Any] = {}
    for parse in dict.fromkeys(_PARSERS.values()):
        parts |= parse(config)
    return _compact_head(RunSpec(config=config, **parts))


_Parser = Callable[[RunConfig], Mapping[str, Any]]


def _create_parser(setting: str, field: str) -> _Parser:
    """Return the parser of a setting that describes one field of `RunSpec`."""
    return lambda config: {field: build_part(config, setting)}


def _parse_training(config: RunConfig) -> Mapping[str, Any]:
    work, optimizer = build_part(config, "local_work"), build_part(config, "optimizer")
    return {"training": LocalTraining(config.batch_size, work, config.learning_rate, optimizer)}


def _parse_codecs(config: RunConfig) -> Mapping[str, Any]:
    lossless = "fp64" if config.dtype == "fp64" else "fp32"
    return {
        "uplink": parse_uplink(lossless if config.codec == "fp32" else config.codec),
        "downlink": parse_downlink(config.downlink, config.codec, lossless),
        "lossless": parse_codec(lossless),
    }


def _parse_privacy(config: RunConfig) -> Mapping[str, Any]:
    private: Mechanism | SecureSum | None = build_part(config, "privacy")
    return {
        "mechanism": private if isinstance(private, Mechanism) else None,
        "secure_sum": sums_under(private),
    }


_PARSERS: Mapping[str, _Parser] = {
    "dataset": _create_parser("dataset", "dataset"),
    "partition": _create_parser("partition", "partitioner"),
    "cohort": _create_parser("cohort", "sampler"),
    "peft": _create_parser("peft", "method"),
    "head": _create_parser("head", "head"),
    "strategy": _create_parser("strategy", "strategy"),
    "server_optimizer": _create_parser("server_optimizer", "server_optimizer"),
    "safeguard": _create_parser("safeguard", "safeguard"),
    "drift": _create_parser("drift", "drift"),
    "batch_size": _parse_training,
    "local_work": _parse_training,
    "learning_rate": _parse_training,
    "optimizer": _parse_training,
    "codec": _parse_codecs,
    "downlink": _parse_codecs,
    "privacy": _parse_privacy,
    "attack": _create_parser("attack", "attack"),
    "grid": _create_parser("grid", "grid"),
    "measure": _create_parser("measure", "measured"),
    "hook": _create_parser("hook", "hooks"),
}
"""What each setting describes. `dtype` decides about codecs, too, but `auto` never becomes fp64."""


Spec = TypeVar("Spec", bound=RunSpec)


def _compact_head(spec: Spec) -> Spec:
    """Return the run with a head that sends its statistics in compact form, unless updates travel without loss."""
    if spec.head is None or spec.uplink.codec.lossless:
        return spec
    return replace(spec, head=spec.head.compact())

"""The server of a setup."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedpeft.clients.local_training import Schedule
from fedpeft.clients.store import ClientStore
from fedpeft.communication.base_residual import ResidualFiles
from fedpeft.communication.codec import parse_codec
from fedpeft.peft.adapter import State
from fedpeft.privacy.engine import Protection
from fedpeft.run.observer import Metrics, Observer
from fedpeft.run.records import Records
from fedpeft.run.setup import Setup
from fedpeft.server.progress import Checkpoints
from fedpeft.server.rounds import Server
from fedpeft.server.sampling import Sampler


def server_of(
    setup: Setup,
    grid: Grid,
    sampler: Sampler,
    folder: Path,
    records: Records,
    observer: Observer,
    evaluate: Callable[[State, int], Metrics | None] | None,
    protection: Protection | None,
    fixed: dict[str, Any],
    remote: bool = False,
) -> Server:
    """The server of a run whose files are in `folder`; the other arguments are as in `Server`."""
    config = setup.config
    return Server(
        grid=grid,
        strategy=setup.strategy,
        optimizer=setup.optimizer,
        downlink=setup.downlink,
        lossless=parse_codec(setup.lossless),
        uplink=setup.uplink,
        estimates=ClientStore(folder / "estimates"),
        sampler=sampler,
        schedule=Schedule(config.learning_rate, config.rounds, config.schedule),
        head=setup.head,
        layout=setup.layout,
        start=setup.start,
        profiles=setup.profiles,
        classes=setup.facts.classes,
        predictions=1 if setup.facts.task == "classification" else setup.tokens,
        seed=config.seed,
        rounds=config.rounds,
        weighting="uniform" if setup.mechanism or config.weighting == "uniform" else "rows",
        proximal=config.proximal,
        scaffold=config.scaffold,
        evaluate=evaluate,
        bases=ResidualFiles(folder / "base"),
        evaluate_every=config.evaluate_every,
        records=records,
        checkpoints=Checkpoints(folder / "checkpoint"),
        observer=observer,
        scratch=folder / "waiting",
        fixed=fixed,
        remote=remote,
        protection=protection,
        factoring=setup.factor_view,
        weight_changes=setup.weight_changes,
    )

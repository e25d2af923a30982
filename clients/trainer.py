"""A client whose local training is a Trainer's (of transformers or trl): its own optimizer, data and callbacks.

Between receiving and sending, `trainer.train()` runs as the script has set it up. Everything else of a client
(`fedpeft.clients.client`) is unchanged: what is decoded, kept between rounds, encoded and sent. Under torchrun one
process speaks to the server, and sends the others their training orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedpeft.clients.executor import Job, Totals, Trained, copy_leading_part, expand_to_parameter
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.local_work import LocalWork
from fedpeft.clients.sequential import SequentialExecutor
from torch import distributed

from fedpeft.communication.base_residual import ResidualFiles
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.machine import seeds
from fedpeft.models.task import FederatedModel, find_trainable
from fedpeft.peft.adapter import AdapterShape, Layout, State

LONGEST_WAIT = timedelta(days=30)
"""How long the other processes wait for the one that speaks to the server."""


@dataclass(frozen=True)
class TrainingOrder:
    """What all processes of a script train.

    Attributes:
        state: the state that they start from.
        form: adapter shape of `state`.
        trained: names of the tensors that change.
        rate: share of the script's learning rate.
        steps: number of steps; 0: the script's own number.
        seed: seed of the round's random numbers.
    """

    state: State
    form: AdapterShape | None
    trained: frozenset[str]
    rate: float
    steps: int
    seed: int


class ProcessGroup:
    """The processes of a script; a single one if torch.distributed is not in use."""

    def __init__(self) -> None:
        """Join the other processes in a group of their own."""
        self.many = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        self.first = not self.many or distributed.get_rank() == 0
        self._group = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT) if self.many else None

    def tell(self, order: TrainingOrder | None) -> TrainingOrder | None:
        """Broadcast the first process's order, and return it in all of them; None: there is nothing more to do."""
        if not self.many:
            return order
        said = [order]
        distributed.broadcast_object_list(said, src=0, group=self._group)
        return said[0]


class TrainerExecutor(SequentialExecutor):
    """Trains by `trainer.train()`, in every process of the script.

    Args:
        trainer: of transformers, its model one of the `peft` library.
        model: around the trainer's.
        train: the trainer's own method.
        ranks: the processes.
        layout: the exchanged tensors; only the process that speaks to the server needs it.
        rate: the federation's learning rate, which corresponds to the script's.
    """

    def __init__(
        self,
        trainer: Any,
        model: FederatedModel,
        train: Callable[[], Any],
        ranks: ProcessGroup,
        layout: Layout | None = None,
        rate: float = 1.0,
    ) -> None:
        """Hold the trainer, and note whether it creates its optimizer."""
        self.trainer = trainer
        self.model = model
        self.parameters = find_trainable(model)
        self.ranks = ranks
        self.rate = rate
        self._layout = layout
        self._train_once = train
        self._makes_optimizer = trainer.optimizer is None

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        """The exchanged tensors."""
        assert self._layout is not None, "only the process that speaks to the server has a layout"
        return self._layout

    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        """Yield the result of one job after another.

        Raises:
            ConfigError: a job needs the gradients of single steps.
        """
        for job in jobs:
            if job.corrections or job.offsets is not None or job.privacy is not None:
                raise ConfigError(
                    "FP1010 a Trainer runs its own training steps, without drift corrections and gradients per "
                    "example; ask for a federation without --drift and dp_sgd"
                )
            order = TrainingOrder(
                job.received,
                job.form or self.layout.form,
                job.trained,
                job.learning_rate / self.rate,
                job.training.steps_for(len(job.rows)),
                seeds.derive_seed(job.seed, "trainer", job.round, job.client) % 2**31,
            )
            self.ranks.tell(order)
            loss, made = self.carry_out(order)
            state = {
                n: copy_leading_part(self.parameters[n].detach(), job.received[n])
                for n in self.parameters
                if n in job.trained
            }
            yield Trained(job.client, state, loss, made, len(job.rows))

    def carry_out(self, order: TrainingOrder) -> tuple[float, int]:
        """Carry out a round's training in this process; return the mean loss and the number of steps."""
        from transformers import set_seed

        trainer, args = self.trainer, self.trainer.args
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.requires_grad_(name in order.trained)
            for name, tensor in order.state.items():
                self.parameters[name].copy_(expand_to_parameter(tensor, self.parameters[name]))
        self._scale(order.form)
        loader: Any = getattr(getattr(trainer, "accelerator", None), "dataloader_config", None)
        before = args.learning_rate, args.max_steps, getattr(loader, "data_seed", None)
        args.learning_rate = before[0] * order.rate
        args.max_steps = order.steps or before[1]
        if loader is not None:
            loader.data_seed = order.seed
        if self._makes_optimizer:  # the trainer's own starts anew each round, like its learning rate
            trainer.optimizer = trainer.lr_scheduler = None
        trainer.model_wrapped = trainer.model  # other tensors may have gradients now
        set_seed(order.seed)
        try:
            output = self._train_once()
        finally:
            args.learning_rate, args.max_steps = before[:2]
            if loader is not None:
                loader.data_seed = before[2]
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)
        return float(output.training_loss), int(trainer.state.global_step)


class ScriptWork(LocalWork):
    """The trainer's own number of steps, on examples in its own order."""

    least = 0

    def continues_walk(self) -> bool:
        """Return False: the examples are the trainer's."""
        return False

    def steps_for(self, rows: int, batch_size: int) -> int:
        """Return 0: the trainer sets its number of steps."""
        return 0


class OwnRows:
    """Stand-in for examples that only the trainer reads."""

    lengths = np.zeros(0, np.int64)


@dataclass(frozen=True)
class TrainerPlan:
    """A client's work plan; its attributes have the names of `fedpeft.clients.workbench.WorkPlan`.

    Attributes:
        layout: the trainable tensors.
        training: settings of local training; those of the script take their place.
        seed: of the federation.
        dtype: data type of the base that the federation sets.
        residuals: folder of what exact rules have put into the base.
        device: that the script's model is on.
    """

    layout: Layout
    training: LocalTraining
    seed: int
    dtype: str
    residuals: Path
    device: str
    classes: int = 0
    executor: str = "trainer"


class TrainerBench:
    """A workbench (`fedpeft.clients.workbench.Workbench`) around a trainer."""

    def __init__(self, plan: TrainerPlan, executor: TrainerExecutor) -> None:
        """Hold the plan, with the script's own number of steps."""
        self.plan = replace(plan, training=replace(plan.training, work=ScriptWork()))
        self.executor = executor
        self.examples = OwnRows()
        self._version = 0

    def set_precision(self, base: str) -> TrainerBench:
        """Return this bench: the base stays as the script has loaded it.

        Raises:
            PayloadError: the server asks for another precision.
        """
        if base not in ("", self.plan.dtype):
            raise PayloadError(
                f"FP6019 the server asks for a base in {base}; a trainer's base is as its script has loaded it"
            )
        return self

    def rebase(self, version: int) -> None:
        """Put the adapted layers on W0 plus the residual of `version`; 0: on W0."""
        if version != self._version:
            self.executor.set_residual(ResidualFiles(self.plan.residuals).get(version))
            self._version = version

    def evaluate(self, *_: Any) -> Totals:
        """Return empty totals: a trainer holds out no examples."""
        return Totals()

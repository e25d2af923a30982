"""The reference executor: one model, adapters swapped in place, one client after another. Edge clients run it, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from fedpeft.clients.drift import Pull, compute_pull
from fedpeft.clients.dropout import DropoutPlan, replace_dropout
from fedpeft.clients.executor import (
    Executor,
    Job,
    Trained,
    collect_penalties,
    copy_leading_parts,
    expand_to_parameter,
    view_leading_part,
)
from fedpeft.clients.local_optimizer import CarriesMomentum, ProbesLosses
from fedpeft.clients.probing import directions, probe
from fedpeft.clients.transfer import move_tensor, put
from torch import Tensor, nn

from fedpeft.data.examples import Batch, Examples
from fedpeft.models.task import FederatedModel, RowLosses, Task, find_trainable
from fedpeft.peft.adapter import AdapterShape, Layout, State
from fedpeft.peft.method import Pulls


def add_gradient(parameter: nn.Parameter, more: Tensor) -> None:
    """Add `more` to a parameter's gradient, which may not exist yet if the loss does not reach the parameter."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad.add_(more)


def _finish_gradients(
    parameters: Mapping[str, nn.Parameter], job: Job, step: int, pulls: Sequence[Pull], penalties: Pulls
) -> None:
    """Add what does not come from the loss: pulls, penalties, corrections, still tensors and clipping."""
    for pull in pulls:
        for name, parameter in parameters.items():
            more = compute_pull(pull, name, view_leading_part(parameter.detach(), job.received[name]))
            if more is not None:
                add_gradient(parameter, expand_to_parameter(more, parameter))
    for name in penalties.keys() & parameters.keys():
        add_gradient(parameters[name], penalties[name](parameters[name].detach()))
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            turned = job.correct_gradient(name, view_leading_part(parameter.grad, job.received[name]))
            if turned is not None:  # into its place: the fused optimizer reads a gradient in its parameter's strides
                parameter.grad.copy_(expand_to_parameter(turned, parameter))
    for name in job.find_still_tensors(parameters, step):
        parameters[name].grad = None
    if job.training.optimizer.max_norm:
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), job.training.optimizer.max_norm)


class SequentialExecutor(Executor):
    """Trains a model that carries the peft library's adapter, one client after another."""

    def __init__(self, model: FederatedModel, task: Task, examples: Examples, layout: Layout) -> None:
        """Find the trainable parameters, and give dropout layers masks that belong to a client."""
        self.model = model
        self.task = task
        self.examples = examples
        self.layout = layout
        self.parameters = find_trainable(model)
        self.device = next(model.parameters()).device
        self.penalties = collect_penalties(model)
        self.dropout = DropoutPlan()
        replace_dropout(model, self.dropout)

    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        """Yield the result of one job after another."""
        self.try_packing(jobs)
        for job in jobs:
            yield self._train(job)

    def load(self, state: State, form: AdapterShape | None = None) -> None:
        """Set the trainable parameters to `state`, padded with zeros."""
        targets = [self.parameters[name] for name in state]
        with torch.no_grad():
            put(
                targets,
                [expand_to_parameter(tensor, target) for tensor, target in zip(state.values(), targets, strict=True)],
            )
        self._scale(form or self.layout.form)

    def get_frozen_layer(self, module: str) -> nn.Module:
        """Return the frozen layer below peft's layer at `module`."""
        wrapped: Any = self.model.base
        layer: nn.Module = wrapped.get_base_model().get_submodule(module).get_base_layer()
        return layer

    def _scale(self, form: AdapterShape | None) -> None:
        """Set the factor before B A of every LoRA layer; a client of lower rank is padded with zeros."""
        from peft.tuners.lora import LoraLayer

        for layer in self.model.modules():
            if form is not None and isinstance(layer, LoraLayer):
                layer.scaling = dict.fromkeys(layer.scaling, form.scale)
            elif form is not None and callable(set_form := getattr(layer, "set_form", None)):
                set_form(form)

    def _train(self, job: Job) -> Trained:
        self.load(job.received, job.form)
        chosen = {name: p for name, p in self.parameters.items() if name in job.trained}
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in chosen)
        optimizer, warmup = job.training.optimizer.create_optimizer(
            chosen, job.learning_rate, job.compute_noise_variance
        )
        momentum, rule = job.choose_momentum(), job.training.optimizer
        if isinstance(rule, CarriesMomentum):
            for name, first in momentum.items():
                rule.write_momentum(optimizer, chosen[name], expand_to_parameter(first, chosen[name]).to(chosen[name]))
        pulls = job.collect_pulls(chosen)
        losses = []
        for step, loss in enumerate(self._iterate_steps(job, chosen, optimizer)):
            _finish_gradients(chosen, job, step, pulls, self.penalties)
            optimizer.step()
            warmup.step()
            losses.append(loss)
        self.dropout.stop()
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        trained = copy_leading_parts({name: p.detach() for name, p in chosen.items()}, job.received)
        if isinstance(rule, CarriesMomentum):
            last = {name: rule.read_momentum(optimizer, chosen[name]) for name in momentum}
            momentum = copy_leading_parts(last, job.received)
        mean = float(torch.stack(losses).double().mean())
        return Trained(job.client, trained, mean, len(losses), len(job.rows), momentum)

    def _iterate_steps(
        self, job: Job, chosen: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> Iterator[Tensor]:
        """Fill the gradients of one step after another, and yield each step's loss."""
        masks = job.create_dropout_generator()
        for step, rows in enumerate(job.create_batches(self.examples.lengths)):
            optimizer.zero_grad(set_to_none=True)
            parts = job.training.split_into_passes(rows)
            if isinstance(job.training.optimizer, ProbesLosses):
                along = {
                    n: expand_to_parameter(z, chosen[n]).to(chosen[n])
                    for n, z in directions(job, self.layout, step).items()
                }
                yield probe(
                    chosen,
                    along,
                    job.training.optimizer.get_probe_distance(),
                    partial(self._mean_loss, job, step, parts),
                )
                continue
            sums = counts = torch.zeros((), device=self.device)
            for part in parts:
                losses = self._losses(job, step, part, masks)
                counts = counts + losses.counts.sum()
                own = losses.sums.sum()
                sums = sums + own.detach()
                # The mean of one pass is known; the sum of several passes is divided when the last one is in.
                (own if len(parts) > 1 else own / counts.clamp(min=1)).backward()  # type: ignore[no-untyped-call]
            counts = counts.clamp(min=1)  # examples of one token predict nothing
            for parameter in chosen.values() if len(parts) > 1 else ():
                if parameter.grad is not None:
                    parameter.grad.div_(counts)
            yield sums / counts

    def _losses(self, job: Job, step: int, rows: np.ndarray, masks: np.random.Generator) -> RowLosses:
        """Return the losses of examples in a step; `masks` is the generator of dropout."""
        self.dropout.routes = [job.route_generator(step)] if self.dropout.draws else []
        self.dropout.clients = [(masks, self.count_sequences(rows), int(self.examples.lengths[rows].max()))]
        batch, _, self.dropout.places = self.create_step_batch([rows])
        return job.compute_losses(self.model, lambda b: self.task.step_losses(self.model, b, job.offsets), batch)

    def _mean_loss(self, job: Job, step: int, parts: Sequence[np.ndarray]) -> Tensor:
        """Return the mean loss of a step's examples, with dropout masks that belong to this step."""
        masks = job.create_dropout_generator(step)
        losses = [self._losses(job, step, rows, masks) for rows in parts]
        counts = torch.stack([of.counts.sum() for of in losses]).sum()
        return torch.stack([of.sums.sum() for of in losses]).sum() / counts.clamp(min=1)

    def batch(self, rows: object) -> Batch:
        """Return a padded batch on the model's device."""
        return {name: move_tensor(t, self.device) for name, t in self.examples.batch(rows).items()}  # type: ignore[arg-type]

"""The clients that one pass trains together: one optimizer over their stacked parameters, and what is each one's own.

Clients with more steps come first. When a client is done, its parameters are copied out, and it takes no part in later
steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from fedpeft.clients.drift import Pull, compute_pull
from fedpeft.clients.executor import Job, Trained, copy_leading_parts, view_leading_part
from fedpeft.clients.local_optimizer import CarriesMomentum, LocalOptimizer
from torch import Tensor, nn

from fedpeft.peft.adapter import State
from fedpeft.peft.method import Pulls


class Group:
    """Jobs that take their steps together.

    Attributes:
        jobs: K jobs, those with more steps first; all have the same settings of training.
        plans: the rows of each step, by job.
        parameters: the trained stacks, (places, ...) with K <= places; the job k is in place k.
        rule: the local optimizer of all jobs.
        optimizer: torch's, over the stacks.
        masks: the generator of each job's dropout masks.
        offsets: (K, classes), added to the logits of each job; None: nothing is added.
    """

    def __init__(
        self, jobs: Sequence[Job], plans: Sequence[list[np.ndarray]], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Create the optimizer; the parameters already have the jobs' received states."""
        self.jobs, self.plans, self.parameters = jobs, plans, parameters
        self.rule = jobs[0].training.optimizer
        self.optimizer, self._schedule = self.rule.create_optimizer(parameters, jobs[0].learning_rate)
        self._momenta = [job.choose_momentum() for job in jobs]
        _write_momenta(self.rule, self.optimizer, parameters, self._momenta)
        self._pulls = [job.collect_pulls({name: p[k] for name, p in parameters.items()}) for k, job in enumerate(jobs)]
        self.masks = [job.create_dropout_generator() for job in jobs]
        given = [job.offsets for job in jobs if job.offsets is not None]
        self.offsets = torch.stack(given) if given else None
        self._losses: list[list[Tensor]] = [[] for _ in jobs]
        self._states: list[State] = [{} for _ in jobs]

    @property
    def steps(self) -> int:
        """The number of steps of the job that has most."""
        return len(self.plans[0])

    def get_rows(self, step: int) -> list[np.ndarray]:
        """Return the rows of a step, from 0, of each job that has such a step."""
        return [plan[step] for plan in self.plans if len(plan) > step]

    def correct_gradients(self, step: int, penalties: Pulls) -> None:
        """Add what does not come from the loss: penalties, pulls, corrections, still tensors and clipping.

        Args:
            step: from 0.
            penalties: gradients of the method's penalties, by the name of the parameter.
        """
        active = len(self.get_rows(step))
        for name in penalties.keys() & self.parameters.keys():
            pulled = penalties[name](self.parameters[name].detach()[:active])
            self.parameters[name].grad[:active].add_(pulled)  # type: ignore[index]
        for k in range(active):
            _correct(self.parameters, k, self.jobs[k], self._pulls[k])
        for name in self.jobs[0].find_still_tensors(self.parameters, step):
            self.parameters[name].grad = None
        if self.rule.max_norm:
            _clip_per_client([p.grad for p in self.parameters.values() if p.grad is not None], self.rule.max_norm)

    def take_step(self, step: int, losses: Tensor) -> None:
        """Change the parameters by their gradients, and keep the states of jobs that are done.

        Args:
            step: from 0.
            losses: (active,), the mean losses of the jobs that have this step.
        """
        self.optimizer.step()
        self._schedule.step()
        for k, loss in enumerate(losses):
            self._losses[k].append(loss)
            if len(self.plans[k]) == step + 1:
                own = {name: p.detach()[k] for name, p in self.parameters.items()}
                self._states[k] = copy_leading_parts(own, self.jobs[k].received)
                self._momenta[k] = _read_momentum(self.jobs[k], self.optimizer, self.parameters, k, self._momenta[k])

    def get_results(self) -> list[Trained]:
        """Return the results of the jobs, after the last step."""
        return [
            Trained(job.client, state, float(torch.stack(loss).double().mean()), len(plan), len(job.rows), momentum)
            for job, state, loss, plan, momentum in zip(
                self.jobs, self._states, self._losses, self.plans, self._momenta, strict=True
            )
        ]


def _write_momenta(
    rule: LocalOptimizer,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    momenta: Sequence[State],
) -> None:
    """Have each client's steps begin with its own momentum, if the optimizer has one; the same tensors for all."""
    if not isinstance(rule, CarriesMomentum):
        return
    for name in momenta[0]:
        stack = torch.zeros_like(parameters[name])
        for k, momentum in enumerate(momenta):
            view_leading_part(stack[k], momentum[name]).copy_(momentum[name])
        rule.write_momentum(optimizer, parameters[name], stack)


def _read_momentum(
    job: Job, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], k: int, names: Iterable[str]
) -> State:
    """Return the momentum of the job in place `k` for some tensors; empty: the optimizer has none."""
    rule = job.training.optimizer
    if not isinstance(rule, CarriesMomentum):
        return {}
    return copy_leading_parts({n: rule.read_momentum(optimizer, parameters[n])[k] for n in names}, job.received)


def _correct(parameters: Mapping[str, nn.Parameter], k: int, job: Job, pulls: Sequence[Pull]) -> None:
    """Add the corrections' terms to the gradients of the job in place `k`, then let the corrections turn them."""
    for pull in pulls:
        for name, parameter in parameters.items():
            assert parameter.grad is not None  # stacked parameters all have one
            like = job.received[name]
            more = compute_pull(pull, name, view_leading_part(parameter.detach()[k], like))
            if more is not None:
                view_leading_part(parameter.grad[k], like).add_(more)
    for name, parameter in parameters.items() if job.corrections else ():
        assert parameter.grad is not None
        gradient = view_leading_part(parameter.grad[k], job.received[name])
        turned = job.correct_gradient(name, gradient)
        if turned is not None:
            gradient.copy_(turned)


def _clip_per_client(gradients: list[Tensor], max_norm: float) -> None:
    """Scale each client's gradient to at most `max_norm`; tensors are (K, ...)."""
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(factors.view(-1, *[1] * (g.ndim - 1)))

"""Training of many clients in one pass over one shared frozen base.

Every linear layer becomes a fast frozen one, every adapted layer a stacked one (see `fedpeft.peft.stacked_layers`). One
fused optimizer steps over the stacks. The loss is the sum of the clients' mean losses, so each client's gradient is
that of its own mean loss.

Clients with more steps come first in a group. When a client is done, its parameters are copied out and its examples
leave the pass. Clients of lower LoRA rank are padded with zeros to the global rank. The padding's gradients are zero,
so it stays zero and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from fedpeft.clients.drift import Pull, compute_pull
from fedpeft.clients.dropout import DropoutPlan, replace_dropout
from fedpeft.clients.executor import Executor, Job, Trained, collect_penalties, copy_leading_parts, view_leading_part
from fedpeft.clients.local_optimizer import CarriesMomentum, LocalOptimizer, ProbesLosses
from fedpeft.clients.probing import directions, probe
from fedpeft.clients.transfer import put
from torch import Tensor, nn

from fedpeft.aggregation.update import pad_ranks
from fedpeft.data.examples import Batch, Examples
from fedpeft.models.abilities import ComparesExamples
from fedpeft.models.determinism import restore_warnings
from fedpeft.models.kernels import Kernel, install_fast_linears
from fedpeft.models.lean_blocks import keep_less
from fedpeft.models.packed_tokens import PackedTokens, can_pack_tokens
from fedpeft.models.task import GROUPS, FederatedModel, RowLosses, Task, find_trainable
from fedpeft.peft.adapter import AdapterShape, Layout, State
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.stacked_layers import PacksTokens, StackedLayer, StackedLinear


class BatchedExecutor(Executor):
    """Trains groups of up to `clients` jobs in one pass.

    Args:
        model: a model without adapter; its layers are replaced in place.
        clients: K, the most clients in one pass.
    """

    def __init__(
        self,
        model: FederatedModel,
        task: Task,
        method: PeftMethod,
        examples: Examples,
        layout: Layout,
        clients: int,
        kernel: Kernel,
    ) -> None:
        """Replace the layers of `model` by stacked ones for `clients` clients."""
        self.model = model
        self.task = task
        self.examples = examples
        self.layout = layout
        self.clients = clients
        self._stack(method, kernel)
        self.parameters = find_trainable(model)
        self.penalties = collect_penalties(model)
        self.dropout = DropoutPlan()
        replace_dropout(model, self.dropout)
        self.stacks = [m for m in model.modules() if isinstance(m, StackedLayer)]
        self.packed = self._create_packed_tokens()

    def _stack(self, method: PeftMethod, kernel: Kernel) -> None:
        device = next(self.model.parameters()).device
        install_fast_linears(self.model.base, kernel)
        keep_less(self.model.base)
        method.stack_into(self.model, [t for t in self.layout.tensors if t.role != "head"], self.clients)
        head = getattr(self.model, "head", None)
        if isinstance(head, nn.Linear):
            self.model.head = StackedLinear(head, self.clients)
        self.model.to(device)

    def _create_packed_tokens(self) -> PackedTokens | None:
        """Return what lets the base work without padding; None: the base or an adapter can't."""
        inside = [m for m in self.model.base.modules() if isinstance(m, StackedLayer)]
        self._activate(1)
        if not all(isinstance(layer, PacksTokens) and layer.packs for layer in inside) or not can_pack_tokens(
            self.model.base
        ):
            return None
        packed = PackedTokens(self.model.base)
        for layer in inside:
            layer.packed = packed
        return packed

    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        """Yield the results in the order of the jobs; groups of `clients` jobs have similar numbers of steps."""
        self.try_packing(jobs)
        plans = [job.create_batches(self.examples.lengths) for job in jobs]
        order = sorted(range(len(jobs)), key=lambda j: -len(plans[j]))
        results: dict[int, Trained] = {}
        while len(results) < len(jobs):
            group = order[len(results) : len(results) + self.clients]
            trained = self._train_fitting([jobs[j] for j in group], [plans[j] for j in group])
            results |= zip(group, trained, strict=False)
        yield from (results[j] for j in range(len(jobs)))

    def _train_fitting(self, jobs: list[Job], plans: list[list[np.ndarray]]) -> list[Trained]:
        """Train the first of these jobs, as many as a GPU's memory holds at once; later passes have no more clients."""
        while True:
            try:
                return self._train(jobs, plans)
            except torch.OutOfMemoryError:
                if len(jobs) == 1:
                    raise
            restore_warnings()
            self.clients = -(-len(jobs) // 2)  # no sooner: the exception holds what did not fit
            jobs, plans = jobs[: self.clients], plans[: self.clients]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _train(self, jobs: list[Job], plans: list[list[np.ndarray]]) -> list[Trained]:
        job = jobs[0]
        chosen = {name: p for name, p in self.parameters.items() if name in job.trained}
        self._load(jobs)
        most = job.training.optimizer.max_norm
        optimizer, warmup = job.training.optimizer.create_optimizer(chosen, job.learning_rate)
        momenta = [j.choose_momentum() for j in jobs]
        _write_momenta(job.training.optimizer, optimizer, chosen, momenta)
        pulls = [j.collect_pulls({name: p[k] for name, p in chosen.items()}) for k, j in enumerate(jobs)]
        given = [j.offsets for j in jobs if j.offsets is not None]
        offsets = torch.stack(given) if given else None
        losses: list[list[Tensor]] = [[] for _ in jobs]
        trained: list[State] = [{} for _ in jobs]
        masks = [j.create_dropout_generator() for j in jobs]
        for step in range(len(plans[0])):
            rows = [plan[step] for plan in plans if len(plan) > step]
            active = self._activate(len(rows))
            batch, real, self.dropout.places = self.create_step_batch(rows)
            if isinstance(self.task, ComparesExamples):
                batch[GROUPS] = assign_rows(real, active)
            shifts = None if offsets is None else offsets[:active].repeat_interleave(len(real) // active, dim=0)
            of_step = partial(self._mean_losses, jobs[:active], step, rows, batch, real, shifts)
            optimizer.zero_grad(set_to_none=True)
            if isinstance(job.training.optimizer, ProbesLosses):
                distance = job.training.optimizer.get_probe_distance()
                client_losses = self._probe_slopes(chosen, jobs[:active], step, distance, of_step)
            else:
                client_losses = of_step(masks)
                client_losses.sum().backward()  # type: ignore[no-untyped-call]
            for name in self.penalties.keys() & chosen.keys():
                pulled = self.penalties[name](chosen[name].detach()[:active])
                chosen[name].grad[:active].add_(pulled)  # type: ignore[index]
            for k in range(active):
                _correct(chosen, k, jobs[k], pulls[k])
            for name in job.find_still_tensors(chosen, step):
                chosen[name].grad = None
            if most:
                _clip_per_client([p.grad for p in chosen.values() if p.grad is not None], most)
            optimizer.step()
            warmup.step()
            for k, loss in enumerate(client_losses.detach()):
                losses[k].append(loss)
                if len(plans[k]) == step + 1:
                    trained[k] = copy_leading_parts({n: p.detach()[k] for n, p in chosen.items()}, jobs[k].received)
                    momenta[k] = _read_momentum(jobs[k], optimizer, chosen, k, momenta[k])
        self.dropout.stop()
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        return [
            Trained(j.client, state, float(torch.stack(loss).double().mean()), len(plan), len(j.rows), momentum)
            for j, state, loss, plan, momentum in zip(jobs, trained, losses, plans, momenta, strict=True)
        ]

    def _mean_losses(
        self,
        jobs: Sequence[Job],
        step: int,
        rows: Sequence[np.ndarray],
        batch: Batch,
        real: Tensor,
        shifts: Tensor | None,
        masks: Sequence[np.random.Generator],
    ) -> Tensor:
        """Return the active clients' mean losses of a step, (active,)."""
        active = len(jobs)
        self.dropout.routes = [j.route_generator(step) for j in jobs] if self.dropout.draws else []
        self.dropout.clients = [
            (m, self.count_sequences(r), int(self.examples.lengths[r].max())) for m, r in zip(masks, rows, strict=False)
        ]
        row_losses = jobs[0].compute_losses(self.model, partial(self._compute_step_losses, shifts), batch)
        sums = (row_losses.sums * real).view(active, -1).sum(1)
        counts = (row_losses.counts * real).view(active, -1).sum(1)
        return sums / counts.clamp(min=1)  # examples of one token predict nothing

    def _probe_slopes(
        self,
        chosen: Mapping[str, nn.Parameter],
        jobs: Sequence[Job],
        step: int,
        distance: float,
        losses: Callable[[Sequence[np.random.Generator]], Tensor],
    ) -> Tensor:
        """Set gradients by slopes along each active client's direction, and return the mean losses, (active,).

        The slopes are those between two points at this `distance`.
        """
        along = {name: torch.zeros_like(parameter) for name, parameter in chosen.items()}
        for k, job in enumerate(jobs):
            for name, signs in directions(job, self.layout, step).items():
                view_leading_part(along[name][k], signs).copy_(signs)

        def padded_losses() -> Tensor:
            found = losses([job.create_dropout_generator(step) for job in jobs])
            return nn.functional.pad(found, (0, len(next(iter(chosen.values()))) - len(jobs)))

        return probe(chosen, along, distance, padded_losses)[: len(jobs)]

    def _compute_step_losses(self, shifts: Tensor | None, batch: Batch) -> RowLosses:
        return self.task.step_losses(self.model, batch, shifts)

    def load(self, state: State, form: AdapterShape | None = None) -> None:
        """Put `state`, padded with zeros, into the first place of the stack, and make that the only active one."""
        self._activate(1)
        self._scale([form or self.layout.form])
        with torch.no_grad():
            for name, tensor in state.items():
                place = self.parameters[name][0]
                place.copy_(pad_ranks(tensor, place))

    def get_frozen_layer(self, module: str) -> nn.Module:
        """Return the frozen layer inside the stack at `module`."""
        layer: nn.Module = self.model.base.get_submodule(module).base_layer  # type: ignore[assignment]
        return layer

    def _activate(self, clients: int) -> int:
        for layer in self.stacks:
            layer.active = clients
        if self.packed is not None:
            self.packed.clients = clients
        return clients

    def _load(self, jobs: Sequence[Job]) -> None:
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in jobs[0].trained)
            parameter.grad = None
        received = [
            torch.stack([pad_ranks(job.received[name], parameter[k]) for k, job in enumerate(jobs)])
            for name, parameter in self.parameters.items()
        ]
        with torch.no_grad():
            put([parameter[: len(jobs)] for parameter in self.parameters.values()], received)
        self._scale([job.form or self.layout.form for job in jobs])

    def _scale(self, forms: Sequence[AdapterShape | None]) -> None:
        for layer in self.stacks:
            layer.set_forms(forms)


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


def assign_rows(real: Tensor, clients: int) -> Tensor:
    """Return the client of each sequence of a pass, (rows,), from 0; -1 for padding, where `real` (rows,) is False."""
    whose = torch.arange(clients, device=real.device).repeat_interleave(len(real) // clients)
    return whose.masked_fill(~real, -1)


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

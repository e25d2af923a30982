"""Training of many clients in one pass over one shared frozen base.

Every linear layer becomes a fast frozen one, every adapted layer a stacked one (see `fedpeft.peft.stacked_layers`). One
fused optimizer steps over the stacks. The loss is the sum of the clients' mean losses, so each client's gradient is
that of its own mean loss.

When a client is done, its examples leave the pass (see `fedpeft.clients.group`). Clients of lower LoRA rank are padded
with zeros to the global rank. The padding's gradients are zero, so it stays zero and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from fedpeft.clients.dropout import DropoutPlan, replace_dropout
from fedpeft.clients.executor import Executor, Job, Trained, collect_penalties, view_leading_part
from fedpeft.clients.group import Group
from fedpeft.clients.local_optimizer import ProbesLosses
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
        self._load(jobs)
        group = Group(jobs, plans, {name: p for name, p in self.parameters.items() if name in jobs[0].trained})
        for step in range(group.steps):
            losses = self._fill_gradients(group, step)
            group.correct_gradients(step, self.penalties)
            group.take_step(step, losses)
        self.dropout.stop()
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        return group.get_results()

    def _fill_gradients(self, group: Group, step: int) -> Tensor:
        """Fill the gradients of a step, and return the active clients' mean losses, (active,)."""
        rows = group.get_rows(step)
        active = self._activate(len(rows))
        batch, real, self.dropout.places = self.create_step_batch(rows)
        if isinstance(self.task, ComparesExamples):
            batch[GROUPS] = assign_rows(real, active)
        compute_losses = partial(self._compute_mean_losses, group, step, batch, real)
        group.optimizer.zero_grad(set_to_none=True)
        if isinstance(group.rule, ProbesLosses):
            return self._probe_slopes(group, step, group.rule.get_probe_distance(), compute_losses)
        losses = compute_losses(group.masks)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    def _compute_mean_losses(
        self, group: Group, step: int, batch: Batch, real: Tensor, masks: Sequence[np.random.Generator]
    ) -> Tensor:
        """Return the active clients' mean losses of a step, (active,)."""
        rows = group.get_rows(step)
        active = len(rows)
        self.dropout.routes = [job.route_generator(step) for job in group.jobs[:active]] if self.dropout.draws else []
        self.dropout.clients = [
            (m, self.count_sequences(r), int(self.examples.lengths[r].max())) for m, r in zip(masks, rows, strict=False)
        ]
        shifts = None
        if group.offsets is not None:
            shifts = group.offsets[:active].repeat_interleave(len(real) // active, dim=0)
        row_losses = group.jobs[0].compute_losses(self.model, partial(self._compute_step_losses, shifts), batch)
        sums = (row_losses.sums * real).view(active, -1).sum(1)
        counts = (row_losses.counts * real).view(active, -1).sum(1)
        return sums / counts.clamp(min=1)  # examples of one token predict nothing

    def _probe_slopes(
        self,
        group: Group,
        step: int,
        distance: float,
        compute_losses: Callable[[Sequence[np.random.Generator]], Tensor],
    ) -> Tensor:
        """Fill gradients by slopes along each active client's direction, and return the mean losses, (active,).

        The slopes are those between two points at this `distance`.
        """
        jobs = group.jobs[: len(group.get_rows(step))]
        along = {name: torch.zeros_like(parameter) for name, parameter in group.parameters.items()}
        for k, job in enumerate(jobs):
            for name, signs in directions(job, self.layout, step).items():
                view_leading_part(along[name][k], signs).copy_(signs)

        def compute_padded_losses() -> Tensor:
            found = compute_losses([job.create_dropout_generator(step) for job in jobs])
            return nn.functional.pad(found, (0, len(next(iter(group.parameters.values()))) - len(jobs)))

        return probe(group.parameters, along, distance, compute_padded_losses)[: len(jobs)]

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


def assign_rows(real: Tensor, clients: int) -> Tensor:
    """Return the client of each sequence of a pass, (rows,), from 0; -1 for padding, where `real` (rows,) is False."""
    whose = torch.arange(clients, device=real.device).repeat_interleave(len(real) // clients)
    return whose.masked_fill(~real, -1)

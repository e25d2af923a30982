"""DP-SGD in a client's local training: Poisson batches, gradients per example, clipping and noise by Opacus.

The loop is the sequential executor's; only the gradient of a step differs. Each example joins with probability q, the
clipped gradients are summed, noise is added, and the sum is divided by the expected number of examples. A step that no
example has joined is a step of noise alone. All randomness that privacy rests on comes from the client's secret key,
never from the run's seed. If noise is added to a sum over clients, there is one step, and its result is the sum of the
clipped gradients itself.

An example's dropout mask belongs to (step, example). If masks were drawn one after another, an example that joins would
move the masks of all later ones. Neighboring sums would then differ by far more than C.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import numpy as np
import torch
from fedpeft.clients.dropout import ClientDropout
from fedpeft.clients.example_gradients import (
    Chosen,
    ExampleGradients,
    check,
    set_empty_gradients,
    zero_nonfinite_gradients,
)
from fedpeft.clients.executor import Job, RowPrivacy, Trained, copy_leading_part, expand_to_parameter
from fedpeft.clients.sequential import SequentialExecutor
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import Tensor, nn

from fedpeft.data.examples import Examples
from fedpeft.errors import PrivacyError
from fedpeft.models.task import FederatedModel, Task
from fedpeft.peft.adapter import Layout
from fedpeft.peft.method import PrivacyRoute
from fedpeft.privacy.noise import draw_gaussian

ROWS_PER_PASS: Final = 32
"""Number of examples whose gradients are held at once when they are summed."""


class SecretNoise(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer, its noise drawn from a secret stream instead of a torch generator.

    The stream is described in `fedpeft.privacy.noise`. `held` maps a parameter to the tensor that the client holds. A
    client of lower rank is padded with zeros, which get no noise, or they would be trained along.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        privacy: RowPrivacy,
        expected: float,
        stream: np.random.Generator,
        held: Mapping[nn.Parameter, Tensor] | None = None,
    ):
        """Set the noise multiplier and clipping norm from `privacy`, and divide sums by `expected`."""
        super().__init__(
            optimizer,
            noise_multiplier=privacy.noise,
            max_grad_norm=privacy.clip,
            expected_batch_size=expected,
        )
        self.stream = stream
        self.held = held or {}

    def add_noise(self) -> None:
        """Set each gradient to the sum of clipped gradients + z C gauss."""
        for parameter in self.params:
            _check_processed_flag(parameter.summed_grad)
            own = self.held.get(parameter, parameter)
            noise = expand_to_parameter(
                draw_gaussian(self.stream, parameter.summed_grad.new_empty(own.shape)), parameter
            )
            parameter.grad = noise.mul_(self.noise_multiplier * self.max_grad_norm).add_(parameter.summed_grad)
            _mark_as_processed(parameter.summed_grad)


class PrivateExecutor(SequentialExecutor):
    """Trains jobs that ask for it with DP-SGD, and the others plainly."""

    def __init__(
        self, model: FederatedModel, task: Task, examples: Examples, layout: Layout, route: PrivacyRoute
    ) -> None:
        """Prepare gradients per example; raise a PrivacyError if examples can't have separate dropout masks."""
        super().__init__(model, task, examples, layout)
        if route == "vmap" and any(isinstance(module, ClientDropout) for module in model.modules()):
            raise PrivacyError(
                "FP7008 dp_sgd draws a separate dropout mask for each example, which this PEFT method's "
                "gradients per example don't allow; use dropout=0, or lora alone"
            )
        self.per_example = ExampleGradients(model, task, route)

    def _train(self, job: Job) -> Trained:
        if job.privacy is not None and job.has_summed_gradients:
            return self._sum_gradients(job, job.privacy)
        result = super()._train(job)
        if job.privacy is not None and job.privacy.noise and job.learning_rate:
            resting = set.intersection(
                *(set(job.find_still_tensors(result.state, step)) for step in range(result.steps))
            )
            asked = [n for n in result.state if self._get_rate(job, n) and n not in resting]
            still = [n for n in asked if torch.equal(result.state[n], job.received[n])]
            if still:
                raise PrivacyError(
                    f"FP7009 DP-SGD has not moved {len(still)} of {len(result.state)} tensors, such as {still[0]}"
                )
        return result

    def _get_rate(self, job: Job, name: str) -> float:
        return job.training.optimizer.rate(name, job.learning_rate)

    def _iterate_steps(self, job: Job, chosen: Chosen, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
        privacy = job.privacy
        if privacy is None:
            yield from super()._iterate_steps(job, chosen, optimizer)
            return
        ids = (job.round, privacy.attempt, job.client)
        noise, expected = privacy.key.stream("gradient noise", *ids), privacy.divisor(len(job.rows))
        held = {parameter: job.received[name] for name, parameter in chosen.items()}
        private = SecretNoise(optimizer, privacy, expected, noise, held)
        with self.per_example.attach_hooks(chosen):
            for step in range(job.training.steps_for(len(job.rows))):
                coins = privacy.key.stream("rows", *ids, step).random(len(job.rows))
                rows = job.rows[coins < privacy.rate]
                self._set_own_masks(rows, privacy, (*ids, step))
                private.zero_grad(set_to_none=True)
                losses = self._fill(rows, chosen)
                check(chosen, len(rows))
                # A tensor that stands still is not released, so it must not count in the clipping.
                for name in job.find_still_tensors(chosen, step):
                    chosen[name].grad_sample.zero_()  # type: ignore[attr-defined]
                for name, parameter in chosen.items():
                    vars(parameter)["grad_sample"] = job.mask_for_clipping(name, vars(parameter)["grad_sample"])
                zero_nonfinite_gradients(chosen)
                private.pre_step()
                yield losses.sum() / max(1, len(rows))

    def _sum_gradients(self, job: Job, privacy: RowPrivacy) -> Trained:
        """Sum the gradients of the drawn examples, each clipped to C; fp64, and zero if no example is drawn."""
        self.load(job.received, job.form)
        chosen = {name: p for name, p in self.parameters.items() if name in job.trained}
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in chosen)
        ids = (job.round, privacy.attempt, job.client, 0)
        rows = job.rows[privacy.key.stream("rows", *ids).random(len(job.rows)) < privacy.rate]
        rows = rows[np.argsort(self.examples.lengths[rows], kind="stable")]
        sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in chosen.items()}
        with self.per_example.attach_hooks(chosen):
            for start in range(0, len(rows), ROWS_PER_PASS):
                part = rows[start : start + ROWS_PER_PASS]
                self._set_own_masks(part, privacy, ids)
                self._fill(part, chosen)
                check(chosen, len(part))
                zero_nonfinite_gradients(chosen)
                gradients = {name: vars(p)["grad_sample"].double() for name, p in chosen.items()}
                if privacy.whitening is not None:
                    gradients = privacy.whitening.compute_gradients(gradients)
                factors = compute_clipping_factors(gradients.values(), privacy.clip)
                for name, gradient in gradients.items():
                    sums[name] += torch.einsum("b,b...->...", factors, gradient)
        self.dropout.stop()
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        own = {name: copy_leading_part(tensor, job.received[name]) for name, tensor in sums.items()}
        return Trained(job.client, own, 0.0, 1, len(job.rows))

    def _set_own_masks(self, rows: np.ndarray, privacy: RowPrivacy, ids: tuple[int, ...]) -> None:
        """Give each example its own dropout mask; `ids`: round, attempt, client, step."""
        lengths = self.examples.lengths
        sequences = self.count_sequences(rows[:1])
        self.dropout.clients = [
            (privacy.key.stream("dropout", *ids, row), sequences, int(lengths[row])) for row in rows
        ]

    def _fill(self, rows: np.ndarray, chosen: Chosen) -> Tensor:
        """Fill the gradients per example of these examples, and return their losses."""
        if not len(rows):
            set_empty_gradients(chosen)
            return torch.zeros(1, device=self.device)
        return self.per_example.fill(self.batch(rows), chosen)


def compute_clipping_factors(gradients: Iterable[Tensor], clip: float) -> Tensor:
    """Return the factors (rows,) that scale each example's gradients to a joint norm of at most `clip`.

    `gradients` are the tensors of a model, (rows, ...) each; the norm of an example is over all of them together.
    """
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
    return (clip / squares.sqrt().clamp(min=clip)).clamp(max=1.0)

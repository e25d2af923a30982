"""Gradients per example: every trained parameter gets `grad_sample` of shape (B, *parameter), for DP-SGD to clip.

The loss of an example is its own mean over what it predicts (one class, or its tokens). It is never a mean over the
batch, which would couple examples. The PEFT method chooses one of two routes:

    hooks   Opacus' rules for the modules that hold trained parameters, from what goes into each of them and the
            gradient of what comes out; the gradients that plain training needs, over the batch, are not computed
    vmap    torch.func.vmap(grad) of the whole model; attention gets a 4-D mask made from the 2-D one, because what
            transformers makes of a 2-D mask depends on its values, which vmap can't trace

`check` always runs. It refuses a parameter whose gradients per example are missing or have another length than the
batch: that parameter would be trained without protection, or not at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedpeft.data.examples import Batch
from fedpeft.data.rows import CLIP_AXES
from fedpeft.errors import PrivacyError
from fedpeft.models.layers import is_single_stack, unwrap
from fedpeft.models.task import FederatedModel, RowLosses, Task
from fedpeft.peft.method import PrivacyRoute

Chosen = Mapping[str, nn.Parameter]
"""The trained parameters by canonical name."""


def compute_row_means(losses: RowLosses) -> Tensor:
    """Return the loss of each example, (B,): its own mean; 0 if it predicts nothing."""
    return losses.sums / losses.counts.clamp(min=1)


class ExampleGradients:
    """Fills `grad_sample` of the chosen parameters of one model."""

    def __init__(self, model: FederatedModel, task: Task, route: PrivacyRoute) -> None:
        """Hold the model and the route; raise a PrivacyError if the PEFT method has no route."""
        if route == "refused":
            raise PrivacyError("FP7005 this PEFT method has no gradients per example; use lora")
        self.model, self.task, self.route = model, task, route
        self._seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    @contextmanager
    def attach_hooks(self, chosen: Chosen) -> Iterator[ExampleGradients]:
        """Enable `fill` while the context is open; parameters outside `chosen` must not require gradients."""
        attach = self._attach_hooks if self.route == "hooks" else self._replace_masks
        with attach(chosen):
            yield self

    def fill(self, batch: Batch, chosen: Chosen) -> Tensor:
        """Set `grad_sample` of every chosen parameter, and return the losses (B,)."""
        return self._compute_by_hooks(batch, chosen) if self.route == "hooks" else self._compute_by_vmap(batch, chosen)

    @contextmanager
    def _attach_hooks(self, chosen: Chosen) -> Iterator[None]:
        trained = {id(p) for p in chosen.values()}
        owners = [m for m in self.model.modules() if any(id(p) in trained for p in m.parameters(recurse=False))]
        rules = GradSampleHooks.GRAD_SAMPLERS
        handles = [m.register_forward_hook(self._see) for m in owners if type(m) in rules]  # `check` names the others
        try:
            yield
        finally:
            self._seen = []
            for handle in handles:
                handle.remove()

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            self._seen.append((module, inputs[0].detach(), output))

    def _compute_by_hooks(self, batch: Batch, chosen: Chosen) -> Tensor:
        losses = compute_row_means(self.task.row_losses(self.model, batch))
        seen, self._seen = self._seen, []
        found: dict[nn.Parameter, Tensor] = {}
        if seen:
            gradients = torch.autograd.grad(
                losses.sum(), [output for _, _, output in seen], allow_unused=True, materialize_grads=True
            )
            for (module, x, _), gradient in zip(seen, gradients, strict=True):
                rule = GradSampleHooks.GRAD_SAMPLERS[type(module)]
                for parameter, of_frames in rule(module, [x], gradient).items():
                    each = _sum_frames(of_frames, batch, len(losses))
                    found[parameter] = found[parameter] + each if parameter in found else each
        for parameter in chosen.values():
            parameter.grad_sample = found.get(parameter)  # type: ignore[attr-defined]
        return losses.detach()

    @contextmanager
    def _replace_masks(self, chosen: Chosen) -> Iterator[None]:
        handle = unwrap(self.model.base).register_forward_pre_hook(_expand_mask, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            for parameter in chosen.values():
                parameter.__dict__.pop("grad_sample", None)

    def _compute_by_vmap(self, batch: Batch, chosen: Chosen) -> Tensor:
        own = {id(p): name for name, p in chosen.items()}
        raw = {name: own[id(p)] for name, p in self.model.named_parameters() if id(p) in own}
        frozen = {name: p.detach() for name, p in self.model.named_parameters() if name not in raw}

        def loss(parameters: dict[str, Tensor], row: Batch) -> tuple[Tensor, Tensor]:
            one = {name: tensor.unsqueeze(0) for name, tensor in row.items()}
            value = compute_row_means(
                self.task.losses(functional_call(self.model, (parameters, frozen), (one,)), one)
            ).sum()
            return value, value

        parameters = {name: chosen[own_name].detach() for name, own_name in raw.items()}
        try:
            with warnings.catch_warnings():
                # CPU attention has no rule for batches of gradients, so torch takes one example after another. The
                # gradients are right, and nobody can act on the warning.
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                gradients, losses = vmap(grad(loss, has_aux=True), in_dims=(None, 0), randomness="different")(
                    parameters, batch
                )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise PrivacyError(f"FP7006 this model and PEFT method have no gradients per example: {reason}") from error
        taken: set[int] = set()
        for name, own_name in raw.items():
            gradient: Tensor = gradients[name]
            memory = gradient.untyped_storage().data_ptr()
            # Both biases of an LSTM's layer may get one tensor; Opacus marks it, and callers change it in place.
            chosen[own_name].grad_sample = gradient.clone() if memory in taken else gradient  # type: ignore[attr-defined]
            taken.add(memory)
        found: Tensor = losses.detach()
        return found


def _sum_frames(gradients: Tensor, batch: Batch, rows: int) -> Tensor:
    """Sum the gradients of the frames of each clip, (rows * frames, ...), to one per example; others stay."""
    pixels = batch.get("pixel_values")
    if pixels is None or pixels.ndim != CLIP_AXES or len(gradients) != rows * pixels.shape[1]:
        return gradients
    return gradients.reshape(rows, pixels.shape[1], *gradients.shape[1:]).sum(1)


def _expand_mask(module: nn.Module, arguments: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, Any]:
    """Turn a mask (B, T) into a boolean one: (B, 1, 1, T), or (B, 1, T, T) for causal models.

    An encoder in front of a decoder gets the first shape.
    """
    mask = given.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return arguments, given
    tokens, keep = mask.shape[1], mask[:, None, None, :].bool()
    if hasattr(module, "lm_head") and is_single_stack(module):
        keep = keep & torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
        given = {"position_ids": torch.arange(tokens, device=mask.device)[None], **given}
    return arguments, {**given, "attention_mask": keep}


def set_empty_gradients(chosen: Chosen) -> None:
    """Give each parameter gradients per example of length 0, for a step without examples."""
    for parameter in chosen.values():
        parameter.grad_sample = parameter.detach().new_zeros(0, *parameter.shape)  # type: ignore[attr-defined]


def check(chosen: Chosen, rows: int) -> None:
    """Check that every chosen parameter has a gradient for each of `rows` examples.

    Raises:
        PrivacyError: names a parameter that has none.
    """
    wrong = {}
    for name, parameter in chosen.items():
        found = getattr(parameter, "grad_sample", None)
        shape = tuple(found.shape) if isinstance(found, Tensor) else None
        if shape != (rows, *parameter.shape):
            wrong[name] = "none" if shape is None else str(shape)
    if wrong:
        name, found_shape = next(iter(wrong.items()))
        raise PrivacyError(
            f"FP7007 {len(wrong)} trained tensors have no gradient for each of {rows} examples, such as {name} "
            f"({found_shape}); DP-SGD can't protect this model and PEFT method, take lora"
        )


def zero_nonfinite_gradients(chosen: Chosen) -> None:
    """Set non-finite gradients per example to zero, because no factor could clip them.

    A hostile server could send a state under which one example's gradient overflows. NaN would pass clipping and noise,
    and so reveal that the example is there.
    """
    for parameter in chosen.values():
        parameter.grad_sample.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # type: ignore[attr-defined]

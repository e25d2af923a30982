"""Prompt tuning: learned embeddings before those of the tokens (Lester et al., arXiv 2104.08691).

    f([P; e(x)]),   P (length, d) starts as embeddings of random tokens of the vocabulary

Rule: the plain mean from a shared start. If clients hold different lengths, each position is averaged over the clients
that own it (strategy owned_mean).

Use it if only a few embeddings may travel, or if clients hold prompts of different lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.machine import seeds
from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.task import FederatedModel
from fedpeft.parts import setting
from fedpeft.peft.adapter import AdapterShape, Role, State, TensorSpec
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.prompts import (
    PromptLength,
    check_takes_prompts,
    find_first_position,
    find_task_type,
    get_embedding_width,
)
from fedpeft.peft.stacked_layers import StackedLayer, StackedWeight

PROMPT = "prompt_encoder.embedding.weight"


class StackedPrompt(StackedLayer):
    """A base model behind the prompts of K clients, (K, length, d)."""

    lengths: Tensor

    def __init__(self, base: nn.Module, shape: tuple[int, ...], clients: int, dtype: torch.dtype) -> None:
        """Create zero prompts of `shape` (length, d) for K `clients`."""
        super().__init__(clients)
        self.base_model = base
        self.prompt_encoder = nn.Module()
        self.prompt_encoder.embedding = StackedWeight(clients, shape, dtype)
        self.register_buffer("lengths", torch.full((clients,), shape[0]), persistent=False)

    def set_forms(self, forms: Sequence[AdapterShape | None]) -> None:
        """Set the clients' prompt lengths."""
        for k, form in enumerate(forms):
            if form is not None:
                self.lengths[k] = form.rank

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **rest: Any) -> Any:
        """Run the base model on the examples of all clients behind their prompts: (K * b, length + T, ...).

        A shorter prompt is aligned to the example: positions that a client lacks come first and are masked. All other
        positions have the numbers and distances that they have for the client alone.
        """
        base: Any = self.base_model
        embedded = base.get_input_embeddings()(input_ids)
        prompts = self.select_active(self.prompt_encoder.embedding.weight, embedded)  # type: ignore[union-attr, arg-type]
        rows = len(input_ids) // self.active
        positions = torch.arange(prompts.shape[1], device=input_ids.device)
        lacking = prompts.shape[1] - self.lengths[: self.active, None]
        held = positions >= lacking
        mask = torch.cat([held.repeat_interleave(rows, dim=0).to(attention_mask.dtype), attention_mask], dim=1)
        if bool(lacking.any()):
            prompts = prompts.gather(1, ((positions - lacking) % prompts.shape[1])[..., None].expand_as(prompts))
            rest["position_ids"] = find_first_position(base) + (mask.cumsum(1) - 1).clamp_min(0)
        return base(
            inputs_embeds=torch.cat([prompts.repeat_interleave(rows, dim=0), embedded], dim=1),
            attention_mask=mask,
            **rest,
        )


@dataclass(frozen=True)
class PromptTuning(PeftMethod):
    """A prompt of learned embeddings."""

    length: int = setting(10, "positions of the prompt", low=1, high=512)

    batched: ClassVar[bool] = True
    mixed_sizes: ClassVar[bool] = True
    tensors: ClassVar[tuple[str, ...]] = (PROMPT,)

    @property
    def form(self) -> AdapterShape:
        """Length of the prompt."""
        return AdapterShape(self.length, self.length)

    def get_settings_for(self, form: AdapterShape) -> dict[str, Any]:
        """Return the length."""
        return {"length": form.rank}

    @property
    def extra_tokens(self) -> int:
        """Length of the prompt."""
        return self.length

    def config(self, base: nn.Module) -> Any:
        """Return a `peft.PromptTuningConfig`."""
        from peft import PromptTuningConfig

        check_takes_prompts(base, self.name)
        width = get_embedding_width(base)
        return PromptTuningConfig(num_virtual_tokens=self.length, task_type=find_task_type(base), token_dim=width)

    def settle(self, base: nn.Module) -> None:
        """Add the module that sets the prompt's length to the client's."""
        base.add_module("prompt_length", PromptLength(base))

    def role(self, name: str) -> tuple[Role, str]:
        """Return the prompt's role; its rows are positions."""
        return ("prompt", "prompt_encoder") if name == PROMPT else super().role(name)

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return embeddings of tokens drawn from the vocabulary."""
        base: Any = model.base
        table = base.word_embeddings.weight.detach().float()
        drawn = torch.randint(len(table), (self.length,), generator=seeds.create_torch_generator(seed, "prompt", 0))
        state = super().start(model, seed)
        state[PROMPT] = table[drawn].clone()
        return state

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Put K prompts before the base."""
        dtype = get_wide_dtype(next(model.base.parameters()).dtype)
        [spec] = tensors
        model.base = StackedPrompt(model.base, spec.shape, clients, dtype)


part = PromptTuning

"""Prompt ensembles: several prompts before one frozen base in one pass, with averaged predictions.

    p(y | x) = sum_j w_j softmax(f([P_j; e(x)]))_y,   P_j (length, d), j = 1 .. prompts

y is a class or, in a language model, the next token: each token of an answer is drawn from the mixture.

Several prompts form an ensemble (Lester et al., arXiv 2104.08691, section 7). A step minimizes the mean over j of each
prompt's own loss, so that each prompt learns as if it were alone. Prompts start from different embeddings of random
tokens. The base sees each example once per prompt, side by side in one batch.

The weights w_j are equal during the run. With weights=validation they are fitted on the validation set when the run
ends, and saved:

    w = softmax_j(-L_j / temperature),   L_j the mean loss of prompt j alone on these examples, or on their tokens

Under privacy they stay equal, unless the validation set is public.

Deviations. The paper trains prompts in separate runs and takes their majority. Here they share the head, which learns
from all of them, and probabilities are averaged. Rule: the plain mean, prompt j with prompt j, from one start.
Gradients per example are refused, because an example is in several sequences. Other tasks than classification and
language modeling are refused.

Use it if single prompts vary too much and several passes per example are affordable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.data.examples import Batch, Examples, batch_by_length
from fedpeft.errors import ModelError
from fedpeft.machine import seeds
from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.task import FederatedModel, RowLosses, Task
from fedpeft.models.tasks.causal_lm import LanguageModel
from fedpeft.models.tasks.classification import Classifier
from fedpeft.parts import setting
from fedpeft.peft.adapter import State, TensorSpec
from fedpeft.peft.method import PeftMethod, PrivacyRoute
from fedpeft.peft.prompts import check_takes_prompts, find_task_type, get_embedding_width
from fedpeft.peft.stacked_layers import StackedLayer, StackedWeight

SHARES = "prompts.shares"
"""Name of the fitted w in a saved result."""

ROWS = 32
"""Examples per pass when w is fitted."""


class PromptedCopies(StackedLayer):
    """A base that sees each example behind each of M prompts of length L, for K clients: prompts ([K,] M * L, d)."""

    def __init__(self, base: nn.Module, copies: int, dtype: torch.dtype, shape: Sequence[int], clients: int = 0):
        """Create zero prompts of `shape` (copies * length, d) before `base`; `clients` 0 stands for one client."""
        super().__init__(max(clients, 1))
        self.base_model, self.copies = base, copies
        if clients:
            self.prompts: nn.Module = StackedWeight(clients, tuple(shape), dtype)
        else:
            self.prompts = nn.Module()
            self.prompts.weight = nn.Parameter(torch.zeros(*shape, dtype=dtype, device=next(base.parameters()).device))

    @property
    def config(self) -> Any:
        """Configuration of the base."""
        return self.base_model.config

    @property
    def generation_config(self) -> Any:
        """The base's settings for answers; None: it has none."""
        return getattr(self.base_model, "generation_config", None)

    def get_base_model(self) -> nn.Module:
        """Return the base without prompts."""
        return self.base_model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **rest: Any) -> Any:
        """Run the base on examples (K * b, T) behind all prompts.

        Returns:
            The base's output (K * b * M, L + T, ...), with the copies of an example side by side.
        """
        base: Any = self.base_model
        embedded = base.get_input_embeddings()(input_ids).repeat_interleave(self.copies, dim=0)
        weight: Tensor = self.prompts.weight  # type: ignore[assignment]
        width, clients = weight.shape[-1], self.active
        each = weight.reshape(-1, 1, self.copies, weight.shape[-2] // self.copies, width)[:clients].to(embedded.dtype)
        shown = each.expand(-1, len(input_ids) // clients, -1, -1, -1).flatten(0, 2)
        mask = attention_mask.repeat_interleave(self.copies, dim=0)
        mask = torch.cat([mask.new_ones(shown.shape[:2]), mask], dim=1)
        rest = {n: t.repeat_interleave(self.copies, dim=0) if isinstance(t, Tensor) else t for n, t in rest.items()}
        return base(inputs_embeds=torch.cat([shown, embedded], dim=1), attention_mask=mask, **rest)


def compute_each_loss(model: FederatedModel, batch: Batch, offsets: Tensor | None = None) -> RowLosses:
    """Compute the losses of each prompt alone: sums and correct (B, prompts), counts (B,)."""
    if isinstance(model, LanguageModel):
        parts = model.copy_losses(batch)
        sums, correct = (torch.stack([getattr(p, name) for p in parts], dim=1) for name in ("sums", "correct"))
        return RowLosses(sums, parts[0].counts, correct)
    assert isinstance(model, Classifier)
    logits = model.split_by_copy(model.head(model.compute_pooled(batch)))
    logits = logits if offsets is None else logits + offsets.to(logits)[:, None]
    labels = batch["labels"][:, None].expand(-1, model.copies)
    sums = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return RowLosses(sums, torch.ones_like(sums[:, 0]), (logits.argmax(-1) == labels).to(sums.dtype))


def compute_prompt_losses(task: Task, model: FederatedModel, batch: Batch, offsets: Tensor | None) -> RowLosses:
    """Compute the mean of the prompts' losses per example, and the mean number of their correct predictions."""
    each = compute_each_loss(model, batch, offsets)
    return RowLosses(each.sums.mean(1), each.counts, each.correct.mean(1))


@dataclass(frozen=True)
class PromptEnsemble(PeftMethod):
    """Several prompts, averaged."""

    prompts: int = setting(4, "number of prompts", low=2, high=64)
    length: int = setting(10, "positions of each prompt", low=1, high=512)
    weights: str = setting(
        "validation",
        "final weights of the prompts; validation: fitted on the validation set (under privacy only if it is public)",
        choices=("validation", "equal"),
    )
    temperature: float = setting(0.1, "temperature of the fitted weights, in nats of an example's loss", above=0)

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    privacy: ClassVar[PrivacyRoute] = "refused"
    tensors: ClassVar[tuple[str, ...]] = ("prompts.weight",)

    @property
    def extra_tokens(self) -> int:
        """Length of one prompt."""
        return self.length

    def _put(self, model: FederatedModel, dtype: torch.dtype, clients: int) -> None:
        if not isinstance(model, Classifier | LanguageModel):
            raise ModelError(
                f"FP4067 {self.name} averages probabilities of classes or of next tokens, which this task lacks; use "
                "lora"
            )
        check_takes_prompts(model.base, self.name)
        find_task_type(model.base)  # refuses an encoder with a decoder
        shape = (self.prompts * self.length, get_embedding_width(model.base))
        model.base = PromptedCopies(model.base, self.prompts, dtype, shape, clients)
        model.copies, model.objective = self.prompts, compute_prompt_losses

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Put the prompts before the base."""
        self._put(model, get_adapter_dtype(dtype), 0)

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Put K clients' prompts before the base."""
        dtype = get_wide_dtype(next(model.base.parameters()).dtype)
        self._put(model, dtype, clients)

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return embeddings of tokens drawn from the vocabulary, different for each prompt."""
        state, base = super().start(model, seed), model.base
        table: Tensor = base.get_base_model().get_input_embeddings().weight.detach().float()  # type: ignore[operator]
        generator = seeds.create_torch_generator(seed, "prompt", 0)
        state["prompts.weight"] = table[torch.randint(len(table), (self.prompts * self.length,), generator=generator)]
        return state

    def fit_when_finished(self, model: FederatedModel, held: Examples) -> State:
        """Fit the weights w to the losses of the `held` examples."""
        if self.weights == "equal" or not len(held) or model.shares is not None:
            return {}
        sums, counts = torch.zeros(self.prompts, dtype=torch.float64), 0.0
        device = next(model.parameters()).device
        with torch.inference_mode():
            for index in batch_by_length(held.lengths, ROWS):
                each = compute_each_loss(model, {name: t.to(device) for name, t in held.batch(index).items()})
                sums += each.sums.double().sum(0).cpu()
                counts += float(each.counts.sum())
        model.shares = (-sums / max(counts, 1.0) / self.temperature).softmax(0)
        return {SHARES: model.shares.float()}

    def attach_saved(self, model: FederatedModel, tensors: State) -> None:
        """Attach the prompts with the fitted w, if the result has it."""
        self.attach(model, "fp32")
        model.shares = tensors.get(SHARES)

    def frozen(self, model: FederatedModel) -> State:
        """Return w, if it is fitted."""
        shares = getattr(model, "shares", None)
        return {} if shares is None else {SHARES: shares}


part = PromptEnsemble

"""Prompt ensembles: several prompts before one frozen base, all in one pass, their predictions averaged (Lester et al.,
arXiv 2104.08691, section 7).

    p(y | x) = sum_j w_j softmax(f([P_j; e(x)]))_y,   P_j (length, d), j = 1 .. prompts

A step minimises the mean over j of each prompt's own loss, so that prompts learn as if alone, from starts of their own:
embeddings of random tokens. The base sees each row once for each prompt, side by side in one batch.

w_j are equal during the run. With weights=validation they are fitted when it ends, on the validation rows, and saved:

    w = softmax_j(-L_j / temperature),   L_j the mean loss of prompt j alone on these rows, a sum over rows

Under privacy they stay equal, unless these rows are public.

Deviations. The paper trains prompts in runs of their own and takes their majority; here they share the head, which
learns from all of them, and probabilities are averaged. Rule: the plain mean, prompt j with prompt j, from one start.
A gradient per example is refused: a row stands in several sequences. Classification only.

Use it if single prompts vary too much and several passes per example are affordable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpeft import seeds
from fedpeft.data.examples import Batch, Examples, batch_by_length
from fedpeft.errors import ModelError
from fedpeft.models.task import FederatedModel, RowLosses, Task, get_adapter_dtype, get_wide_dtype
from fedpeft.models.tasks.classification import Classifier
from fedpeft.parts import setting
from fedpeft.peft.adapter import Role, State, TensorSpec
from fedpeft.peft.method import PeftMethod, PrivacyRoute
from fedpeft.peft.prompts import check_takes_prompts
from fedpeft.peft.stacked_layers import StackedLayer, StackedWeight

SHARES = "prompts.shares"
"""What the fitted w is called in a saved result."""

ROWS = 32
"""In a pass, when w is fitted."""


class PromptedCopies(StackedLayer):
    """A base that sees each row behind each of M prompts of length L, for K clients: prompts ([K,] M * L, d)."""

    def __init__(self, base: nn.Module, copies: int, dtype: torch.dtype, shape: Sequence[int], clients: int = 0):
        super().__init__(max(clients, 1))
        self.base_model, self.copies = base, copies
        if clients:
            self.prompts: nn.Module = StackedWeight(clients, tuple(shape), dtype)
        else:
            self.prompts = nn.Module()
            self.prompts.weight = nn.Parameter(torch.zeros(*shape, dtype=dtype, device=next(base.parameters()).device))

    @property
    def config(self) -> Any:
        """The base's."""
        return self.base_model.config

    def get_base_model(self) -> nn.Module:
        """The base without prompts."""
        return self.base_model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **rest: Any) -> Any:
        """The base's output on (K * b, T) rows: (K * b * M, L + T, ...), the copies of a row side by side."""
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


def compute_prompt_losses(task: Task, model: FederatedModel, batch: Batch, offsets: Tensor | None) -> RowLosses:
    """The mean over prompts of each one's loss; correct is what all say together."""
    assert isinstance(model, Classifier)
    logits = model.split_by_copy(model.head(model.compute_pooled(batch)))
    logits = logits if offsets is None else logits + offsets.to(logits)[:, None]
    each = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, None].expand(-1, model.copies), reduction="none")
    together = task.losses(model.mix_copies(logits), batch)
    return RowLosses(each.mean(1), together.counts, together.correct)


@dataclass(frozen=True)
class PromptEnsemble(PeftMethod):
    """Several prompts, averaged."""

    prompts: int = setting(4, "how many", low=2, high=64)
    length: int = setting(10, "positions of each", low=1, high=512)
    weights: str = setting(
        "validation",
        "of prompts in the end; validation: fitted, under privacy on public rows alone",
        choices=("validation", "equal"),
    )
    temperature: float = setting(0.1, "of the fitted weights, in nats of a row's loss", above=0)

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    privacy: ClassVar[PrivacyRoute] = "refused"
    tensors: ClassVar[tuple[str, ...]] = ("prompts.weight",)

    @property
    def extra_tokens(self) -> int:
        """The length of one."""
        return self.length

    def config(self, base: nn.Module) -> Any:
        """None: the `peft` library has no such method."""
        return None

    def _put(self, model: FederatedModel, dtype: torch.dtype, clients: int) -> None:
        if not isinstance(model, Classifier):
            raise ModelError(
                f"FP4067 {self.name} averages the classes' probabilities; for a language model take prompt_tuning"
            )
        check_takes_prompts(model.base, self.name)
        shape = (self.prompts * self.length, model.base.config.hidden_size)  # type: ignore[union-attr]
        model.base = PromptedCopies(model.base, self.prompts, dtype, shape, clients)  # type: ignore[arg-type]
        model.copies, model.objective = self.prompts, compute_prompt_losses

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Put the prompts before the base."""
        self._put(model, get_adapter_dtype(dtype), 0)

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """K clients' prompts before the base."""
        dtype = get_wide_dtype(next(model.base.parameters()).dtype)
        self._put(model, dtype, clients)

    def role(self, name: str) -> tuple[Role, str]:
        """Before the base, not in it."""
        return ("plain", "prompts") if name == "prompts.weight" else super().role(name)

    def start(self, model: FederatedModel, seed: int) -> State:
        """Embeddings of tokens drawn from the vocabulary, others for each prompt."""
        state, base = super().start(model, seed), model.base
        table: Tensor = base.get_base_model().get_input_embeddings().weight.detach().float()  # type: ignore[operator]
        generator = seeds.create_torch_generator(seed, "prompt", 0)
        state["prompts.weight"] = table[torch.randint(len(table), (self.prompts * self.length,), generator=generator)]
        return state

    def fitted(self, model: FederatedModel, held: Examples) -> State:
        """w, as the losses of `held` rows want it."""
        assert isinstance(model, Classifier)
        if self.weights == "equal" or not len(held) or model.shares is not None:
            return {}
        sums = torch.zeros(self.prompts, dtype=torch.float64)
        with torch.inference_mode():
            for index in batch_by_length(held.lengths, ROWS):
                batch = held.batch(index)
                logits = model.split_by_copy(model.head(model.compute_pooled(batch))).double()
                labels = batch["labels"][:, None].expand(-1, self.prompts)
                sums += F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(0)
        model.shares = (-sums / len(held) / self.temperature).softmax(0)
        return {SHARES: model.shares.float()}

    def attach_saved(self, model: FederatedModel, tensors: State) -> None:
        """With the fitted w, if there is one."""
        self.attach(model, "fp32")
        assert isinstance(model, Classifier)
        model.shares = tensors.get(SHARES)

    def frozen(self, model: FederatedModel) -> State:
        """w, if it is fitted."""
        shares = getattr(model, "shares", None)
        return {} if shares is None else {SHARES: shares}


part = PromptEnsemble

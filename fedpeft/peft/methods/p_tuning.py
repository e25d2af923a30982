"""P-tuning: a prompt that a small network computes from learned embeddings (Liu et al., arXiv 2103.10385).

    f([MLP(E); e(x)]),   E (length, d) and the MLP's weights are trained

Rule: the plain mean of E and the network from a shared start (FedAvg). It is not exact, since the network is not
linear. The saved adapter contains the prompt alone, as `peft` saves it. Only the sequential executor trains it, and
clients have one length.

Use it if one prompt for all clients should come from a network, as in the `peft` library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fedpeft.models.task import FederatedModel
from fedpeft.parts import setting
from fedpeft.peft.adapter import State
from fedpeft.peft.method import PeftMethod, draw_uniform
from fedpeft.peft.prompts import check_takes_prompts, find_task_type, get_embedding_width


@dataclass(frozen=True)
class PTuning(PeftMethod):
    """A prompt from an embedding and an MLP."""

    length: int = setting(10, "positions of the prompt", low=1, high=512)
    hidden: int = setting(64, "width of the network", low=1, high=4096)

    tensors: ClassVar[tuple[str, ...]] = (
        "prompt_encoder.embedding.weight",
        *(f"prompt_encoder.mlp_head.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")),
    )

    @property
    def extra_tokens(self) -> int:
        """Length of the prompt."""
        return self.length

    def config(self, base: nn.Module) -> Any:
        """Return a `peft.PromptEncoderConfig`."""
        from peft import PromptEncoderConfig

        check_takes_prompts(base, self.name)
        return PromptEncoderConfig(
            num_virtual_tokens=self.length,
            encoder_hidden_size=self.hidden,
            task_type=find_task_type(base),
            token_dim=get_embedding_width(base),
        )

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return the embedding uniform in +-1, weights uniform in +-1/sqrt(in), and biases zero."""
        state = super().start(model, seed)
        for name in state:
            if name in self.tensors:
                bound = 0.0
                if state[name].ndim == 2:
                    bound = 1.0 if "embedding" in name else state[name].shape[1] ** -0.5
                draw_uniform(state, name, seed, bound)
        return state


part = PTuning

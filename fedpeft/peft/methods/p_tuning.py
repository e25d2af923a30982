"""P-tuning: a prompt that a small network computes from learned embeddings (Liu et al., arXiv 2103.10385).

    f(x_1 .. x_n, [P; x_(n+1) ..]),   P = network(E), E (length, d) and the network's weights are trained

    mlp     three linear layers with ReLU between them: d, hidden, hidden, d
    lstm    a bidirectional LSTM of two layers, each way `hidden` wide, and two linear layers with ReLU between them:
            2 hidden, 2 hidden, d. Each position of the prompt depends on the others. hidden = d/2 is the authors' size

The prompt stands before the example, or `after` so many of its tokens: after=1 is behind an encoder's first special
token. With after=(0, 4) the positions are divided evenly between the places, the first ones before the example and the
others behind its fourth token. In an encoder, a text of fewer tokens gets the rest at its end. A language model sees
the prompt from that place on: what comes before is predicted as without it. Losses, pooling and generation read the
positions of the example's own tokens, and the last position of the prompt predicts the token behind it.

Rule: the plain mean of E and the network from a shared start (FedAvg). It is not exact, since the network is not
linear. A prompt before the example is saved alone, as `peft` saves it. `peft` has no other places, so with `after` E
and the network are saved in fedpeft's own format. Only the sequential executor trains it, and clients have one length.

Use it if one prompt for all clients should come from a network, or should stand inside the example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.errors import ConfigError
from fedpeft.models.layers import get_reader
from fedpeft.models.task import FederatedModel
from fedpeft.parts import setting
from fedpeft.peft.adapter import State
from fedpeft.peft.method import PeftMethod, draw_uniform
from fedpeft.peft.prompts import check_takes_prompts, find_task_type, get_embedding_width

ENCODER = "prompt_encoder"
LSTM_LAYERS = 2


def find_positions(places: Tensor, lengths: Tensor, tokens: int) -> Tensor:
    """Return where prompt and tokens stand in the sequence, (B, length + T): first the prompt's, then the tokens'.

    Args:
        places: number of tokens before each position of the prompt, ascending, (length,).
        lengths: number of real tokens of each example, (B,).
        tokens: T, with padding.
    """
    before = torch.minimum(places, lengths[:, None])
    of_prompt = before + torch.arange(len(places), device=places.device)
    token = torch.arange(tokens, device=places.device)
    return torch.cat([of_prompt, token + (before[:, None] <= token[:, None]).sum(-1)], dim=1)


class PlacedPrompt:
    """Hooks around a model that reads embeddings: they move the prompt to its places, and the outputs back.

    The caller gives the prompt's positions first, and receives hidden states in that order.
    """

    def __init__(self, reader: nn.Module, places: tuple[int, ...], predicts: bool) -> None:
        """Register the hooks on `reader`.

        Args:
            reader: the model without its output layer.
            places: number of tokens before each position of the prompt, ascending.
            predicts: whether an output predicts the next token, so that it is read just before that token.
        """
        self.places, self.predicts = places, predicts
        self.read: Tensor | None = None
        reader.register_forward_pre_hook(self.place, with_kwargs=True)
        reader.register_forward_hook(self.restore)

    def place(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Reorder embeddings (B, length + T, d) and mask: (B, length + T), or already (B, 1, 1 or queries, keys)."""
        embedded, mask = named["inputs_embeds"], named.get("attention_mask")
        real = mask if mask is None or mask.dim() == 2 else mask[:, 0, -1]  # the last query sees all real positions
        places = torch.tensor(self.places, device=embedded.device)
        rows, tokens = embedded.shape[0], embedded.shape[1] - len(places)
        lengths = torch.full((rows,), tokens, device=embedded.device)
        if real is not None:
            lengths = real[:, len(places) :].long().sum(1)
        positions = find_positions(places, lengths, tokens)
        order = positions.argsort(1)
        named = {**named, "inputs_embeds": embedded.gather(1, order[..., None].expand_as(embedded))}
        if real is not None:
            named["attention_mask"] = real = real.gather(1, order)
        if real is not None and mask is not None and mask.dim() == 4:
            seen = real[:, None, None].expand(-1, -1, mask.shape[2], -1)
            named["attention_mask"] = seen.tril() if mask.shape[2] > 1 else seen
        if self.predicts:
            token = torch.arange(tokens, device=embedded.device)
            next_is_behind = (places <= token[:, None] + 1).sum(-1)
            positions = torch.cat([positions[:, : len(places)], (token + next_is_behind).expand(rows, -1)], dim=1)
        self.read = positions
        return arguments, named

    def restore(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        """Reorder the last hidden states (B, length + T, d)."""
        read, self.read = self.read, None
        assert read is not None
        hidden: Tensor = output.last_hidden_state
        output.last_hidden_state = hidden.gather(1, read[..., None].expand_as(hidden))
        return output


@dataclass(frozen=True)
class PTuning(PeftMethod):
    """A prompt from an embedding and an MLP or LSTM, before the example or inside it."""

    length: int = setting(10, "positions of the prompt", low=1, high=512)
    hidden: int = setting(64, "width of the network", low=1, high=4096)
    encoder: str = setting("mlp", "network that computes the prompt", choices=("mlp", "lstm"))
    after: int | tuple[int, ...] = setting(
        0, "tokens of the example before the prompt; several places in ascending order share its positions", low=0
    )

    def __post_init__(self) -> None:
        """Refuse places that are not ascending, or more places than positions.

        Raises:
            ConfigError: names the places.
        """
        if not isinstance(self.after, tuple):
            return
        ascending = sorted(set(self.after)) == list(self.after)
        if not (ascending and self.after and self.after[0] >= 0 and len(self.after) <= self.length):
            raise ConfigError(
                f"FP1631 after={self.after} of p_tuning must be at most {self.length} ascending numbers of tokens, "
                "each at least 0 and given once; write for example after=(0, 4)"
            )

    @property
    def places(self) -> tuple[int, ...]:
        """Number of tokens before each position of the prompt, (length,)."""
        places = self.after if isinstance(self.after, tuple) else (self.after,)
        return tuple(places[position * len(places) // self.length] for position in range(self.length))

    @property
    def in_peft(self) -> bool:  # type: ignore[override]
        """Whether the prompt is a prefix, since `peft` knows no other place."""
        return not any(self.places)

    @property
    def tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the embedding and of the network's weights."""
        linear = (0, 2, 4) if self.encoder == "mlp" else (0, 2)
        layers: tuple[str, ...] = ()
        if self.encoder == "lstm":
            layers = tuple(
                f"{kind}_{side}_l{layer}{way}"
                for layer in range(LSTM_LAYERS)
                for way in ("", "_reverse")
                for kind in ("weight", "bias")
                for side in ("ih", "hh")
            )
        return (
            f"{ENCODER}.embedding.weight",
            *(f"{ENCODER}.lstm_head.{name}" for name in layers),
            *(f"{ENCODER}.mlp_head.{i}.{kind}" for i in linear for kind in ("weight", "bias")),
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
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_num_layers=LSTM_LAYERS,
            task_type=find_task_type(base),
            token_dim=get_embedding_width(base),
        )

    def settle(self, base: nn.Module) -> None:
        """Move the prompt to its places, unless it stands before the example."""
        if not self.in_peft:
            plain: Any = base.get_base_model()  # type: ignore[operator]
            PlacedPrompt(get_reader(plain), self.places, find_task_type(plain) == "CAUSAL_LM")

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

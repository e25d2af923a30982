"""A classifier on the mean of an encoder's last hidden states, or of those of all its blocks, beside one another.

transformers loads it with `trust_remote_code=True`.

No class of transformers can hold it: those for sequence classification read one token, or a pooler of their own. A copy
of this file lies in the folder of every exported classifier, so it imports torch and transformers only.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class EncoderAlone:
    """Before the class of an encoder-decoder model: its encoder is all that is computed."""

    def forward(self: Any, **named: Any) -> Any:
        """What the encoder gives, of input_ids or inputs_embeds, and attention_mask."""
        return self.get_encoder()(**named)


def remove_decoder(model: Any) -> Any:
    """An encoder-decoder model, such as T5 or BART, without its decoder, in place; the names of weights stay."""

    def rest(tied: Any) -> Any:
        return {name: other for name, other in (tied or {}).items() if not name.startswith("decoder.")}

    del model.decoder
    kind = type(model)
    parts = {"__module__": kind.__module__, "_tied_weights_keys": rest(kind._tied_weights_keys)}
    model.__class__ = type(kind.__name__, (EncoderAlone, kind), parts)
    model.all_tied_weights_keys = rest(model.all_tied_weights_keys)
    return model


class MeanPooledConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Which encoder, and the names of the classes.

    Args:
        base: the encoder's own configuration, as a dictionary with its `model_type`.
        all_blocks: whether what enters the first block and leaves each is read, each brought to length 1, beside one
            another; else what leaves the last.
        blocks: where the encoder has its list of them, if its class is none of transformers' and need not tell its
            hidden states: they are read there.
        named: those of every configuration; `id2label` names the classes.
    """

    model_type = "mean_pooled_classifier"  # none that transformers has: it would load a class of its own instead

    def __init__(
        self, base: dict[str, Any] | None = None, all_blocks: bool = False, blocks: str = "", **named: Any
    ) -> None:
        super().__init__(**named)
        self.base = base or {}
        self.all_blocks = all_blocks
        self.blocks = blocks


class MeanPooledClassifier(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Encoder, mean over the tokens (or patches), linear head: of classes, several labels, or a number, as
    `problem_type` says."""

    config_class = MeanPooledConfig
    _supports_sdpa = True

    def __init__(self, config: MeanPooledConfig) -> None:
        super().__init__(config)
        settings = dict(config.base)
        encoder = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.base = AutoModel.from_config(encoder, trust_remote_code=False)  # type: ignore[no-untyped-call]
        if encoder.is_encoder_decoder:
            remove_decoder(self.base)
        states = 1
        if config.all_blocks:
            states += len(self.base.get_submodule(config.blocks)) if config.blocks else encoder.num_hidden_layers
        self.head = nn.Linear(encoder.hidden_size * states, len(config.id2label or {}))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **named: Any,
    ) -> SequenceClassifierOutput:
        """Logits (B, classes) of texts (B, T) or of images (B, 3, height, width); with labels (B,) the loss, too."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
        named |= {name: tensor for name, tensor in given.items() if tensor is not None}
        if "interpolate_pos_encoding" in inspect.signature(self.base.forward).parameters:
            named.setdefault("interpolate_pos_encoding", True)
        hidden, below = self.states(named)
        if self.config.all_blocks:
            states = [*(state.float() for state in below), hidden]
            hidden = torch.cat([nn.functional.normalize(state, dim=-1) for state in states], dim=-1)
        mask = torch.ones(hidden.shape[:2]) if attention_mask is None else attention_mask
        weights = mask[..., None].to(hidden)
        pooled = (hidden * weights).sum(1) / weights.sum(1)
        logits = self.head(pooled.to(self.head.weight.dtype))
        loss = None if labels is None else self.compute_loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def states(self, named: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """The encoder's last hidden states, and where all blocks are read what enters the first and leaves each but the
        last, whose own may lack a norm that belongs to it."""
        if not self.config.all_blocks:
            return self.base(**named).last_hidden_state.float(), []
        if not self.config.blocks:
            output = self.base(**named, output_hidden_states=True)
            return output.last_hidden_state.float(), list(output.hidden_states[:-1])
        stack, found = list(self.base.get_submodule(self.config.blocks)), list[Tensor]()

        def entering(_: nn.Module, given: tuple[Any, ...], more: dict[str, Any]) -> None:
            found.append(given[0] if given else more["hidden_states"])

        def leaving(_: nn.Module, __: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        handles: list[Any] = [stack[0].register_forward_pre_hook(entering, with_kwargs=True)]
        handles += [block.register_forward_hook(leaving) for block in stack[:-1]]
        try:
            return self.base(**named).last_hidden_state.float(), found
        finally:
            for handle in handles:
                handle.remove()

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, as transformers' own classifiers have it for each `problem_type`."""
        if self.config.problem_type == "regression":
            return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits).squeeze(-1))
        if self.config.problem_type == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        return nn.functional.cross_entropy(logits, labels)

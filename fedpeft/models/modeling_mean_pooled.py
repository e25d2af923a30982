"""A classifier on the mean of an encoder's last hidden states, or of the states of all its blocks, concatenated.

transformers loads it with `trust_remote_code=True`. Its own classes for sequence classification can't represent it,
because they read one token, or a pooler of their own. The folder of every exported classifier contains a copy of this
file, so it imports only torch and transformers.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class EncoderAlone:
    """A mixin before the class of an encoder-decoder model that computes only its encoder."""

    def forward(self: Any, **named: Any) -> Any:
        """Return the encoder's output for input_ids or inputs_embeds, and attention_mask."""
        return self.get_encoder()(**named)


def remove_decoder(model: Any) -> Any:
    """Remove the decoder of an encoder-decoder model such as T5 or BART, in place; the names of weights stay."""

    def drop_decoder(tied: Any) -> Any:
        return {name: other for name, other in (tied or {}).items() if not name.startswith("decoder.")}

    del model.decoder
    kind = type(model)
    parts = {"__module__": kind.__module__, "_tied_weights_keys": drop_decoder(kind._tied_weights_keys)}
    model.__class__ = type(kind.__name__, (EncoderAlone, kind), parts)
    model.all_tied_weights_keys = drop_decoder(model.all_tied_weights_keys)
    return model


class MeanPooledConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The encoder's configuration and the names of the classes.

    Args:
        base: the encoder's own configuration, as a dictionary with its `model_type`.
        all_blocks: whether the head reads the input of the first block and the output of each, normalized and
            concatenated, instead of the last output alone.
        blocks: path of the encoder's list of blocks, if its class is not one of transformers' and may not return its
            hidden states: they are captured there.
        named: the arguments of every configuration; `id2label` names the classes.
    """

    model_type = "mean_pooled_classifier"  # a new name, or transformers would load a class of its own

    def __init__(
        self, base: dict[str, Any] | None = None, all_blocks: bool = False, blocks: str = "", **named: Any
    ) -> None:
        """Store the configuration; see the class."""
        super().__init__(**named)
        self.base = base or {}
        self.all_blocks = all_blocks
        self.blocks = blocks


class MeanPooledClassifier(PreTrainedModel):  # type: ignore[no-untyped-call]
    """An encoder, the mean over its tokens (or patches), and a linear head.

    The head predicts classes, several labels, or a number, depending on `problem_type`.
    """

    config_class = MeanPooledConfig
    _supports_sdpa = True

    def __init__(self, config: MeanPooledConfig) -> None:
        """Create the encoder and the head of a configuration."""
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
        """Compute logits (B, classes) of texts (B, T) or images (B, 3, height, width).

        With labels (B,) the output also has the mean loss.
        """
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
        """Return the encoder's last hidden states, and if all blocks are read, the states below.

        The states below are the input of the first block and the output of each block but the last. The last block's
        own output may lack a norm that belongs to it.
        """
        if not self.config.all_blocks:
            return self.base(**named).last_hidden_state.float(), []
        if not self.config.blocks:
            output = self.base(**named, output_hidden_states=True)
            return output.last_hidden_state.float(), list(output.hidden_states[:-1])
        stack, below = list(self.base.get_submodule(self.config.blocks)), list[Tensor]()

        def capture_input(_: nn.Module, given: tuple[Any, ...], more: dict[str, Any]) -> None:
            below.append(given[0] if given else more["hidden_states"])

        def capture_output(_: nn.Module, __: Any, output: Any) -> None:
            below.append(output[0] if isinstance(output, tuple) else output)

        handles: list[Any] = [stack[0].register_forward_pre_hook(capture_input, with_kwargs=True)]
        handles += [block.register_forward_hook(capture_output) for block in stack[:-1]]
        try:
            return self.base(**named).last_hidden_state.float(), below
        finally:
            for handle in handles:
                handle.remove()

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss, as transformers' own classifiers do for each `problem_type`."""
        if self.config.problem_type == "regression":
            return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits).squeeze(-1))
        if self.config.problem_type == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        return nn.functional.cross_entropy(logits, labels)

"""Common parts of the methods that put learned positions before an example, based on `peft`'s prompt models."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.models.layers import is_single_stack
from fedpeft.peft.adapter import AdapterShape


def find_task_type(base: nn.Module) -> str:
    """Return the `peft` task type of the base, "FEATURE_EXTRACTION" or "CAUSAL_LM".

    Raises:
        ModelError: the base has an encoder and a decoder.
    """
    language: Any = getattr(base, "get_output_embeddings", lambda: None)()
    if language is not None and not is_single_stack(base):
        raise ModelError(
            f"FP4070 prompts need a model of one stack, and {type(base).__name__} has an encoder and a decoder; "
            "use --peft lora"
        )
    return "FEATURE_EXTRACTION" if language is None else "CAUSAL_LM"


def check_takes_prompts(base: nn.Module, method: str) -> None:
    """Raise ModelError unless the base accepts embeddings as input, which prompts need."""
    if "inputs_embeds" not in inspect.signature(base.forward).parameters or not hasattr(base.config, "vocab_size"):
        raise ModelError(
            f"FP4071 {method} puts learned embeddings before those of the tokens, and {type(base).__name__} "
            "does not accept embeddings; use prefix_tuning"
        )


def get_embedding_width(base: nn.Module) -> int:
    """Return the width of the token embeddings; ALBERT and ELECTRA widen them afterwards."""
    table: Any = base.get_input_embeddings()  # type: ignore[operator]
    return int(table.embedding_dim)


def find_first_position(base: nn.Module) -> int:
    """Return the position number of an example's first token.

    It is 0, but RoBERTa and its relatives count from one after the padding's number.
    """
    for module in base.modules():
        if hasattr(module, "create_position_ids_from_inputs_embeds"):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


class PromptLength(nn.Module):
    """A module that limits a `peft` prompt model to the first positions of its prompt, for clients with short ones."""

    def __init__(self, prompted: Any) -> None:
        """Hold the prompt model, `prompted`."""
        super().__init__()
        self._prompted = [prompted]  # in a list, so that the model does not become a child of its own child

    def set_form(self, form: AdapterShape) -> None:
        """Set the client's prompt length."""
        import torch

        prompted = self._prompted[0]
        prompted.peft_config["default"].num_virtual_tokens = form.rank
        prompted.prompt_tokens["default"] = torch.arange(form.rank)

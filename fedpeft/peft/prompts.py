"""What the methods that put learned positions before a row's own have in common, on `peft`'s prompt models."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.models.layers import is_single_stack
from fedpeft.peft.adapter import AdapterShape


def find_task_type(base: nn.Module) -> str:
    """How `peft` calls what the base does.

    Raises:
        ModelError: it is an encoder with a decoder.
    """
    language: Any = getattr(base, "get_output_embeddings", lambda: None)()
    if language is not None and not is_single_stack(base):
        raise ModelError(
            f"FP4070 prompts stand before what one stack reads, and {type(base).__name__} has an encoder and a "
            "decoder; take --peft lora"
        )
    return "FEATURE_EXTRACTION" if language is None else "CAUSAL_LM"


def check_takes_prompts(base: nn.Module, method: str) -> None:
    """Raise ModelError unless the base reads embeddings, which prompts are put before."""
    if "inputs_embeds" not in inspect.signature(base.forward).parameters or not hasattr(base.config, "vocab_size"):
        raise ModelError(
            f"FP4071 {method} puts learned embeddings before those of the tokens, and {type(base).__name__} takes "
            "none; take prefix_tuning"
        )


def get_embedding_width(base: nn.Module) -> int:
    """Of the embeddings that prompts are put before: ALBERT and ELECTRA widen them afterwards."""
    table: Any = base.get_input_embeddings()  # type: ignore[operator]
    return int(table.embedding_dim)


def find_first_position(base: nn.Module) -> int:
    """The number of a row's first position: 0, but RoBERTa and its kin count from behind the padding's."""
    for module in base.modules():
        if hasattr(module, "create_position_ids_from_inputs_embeds"):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


class PromptLength(nn.Module):
    """Lets a `peft` prompt model use the first positions of its prompt only: what a client of smaller size holds."""

    def __init__(self, prompted: Any) -> None:
        super().__init__()
        self._prompted = [prompted]  # in a list, or it would become a child of its own child

    def set_form(self, form: AdapterShape) -> None:
        """The client's length."""
        import torch

        prompted = self._prompted[0]
        prompted.peft_config["default"].num_virtual_tokens = form.rank
        prompted.prompt_tokens["default"] = torch.arange(form.rank)

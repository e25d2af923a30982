"""Captions by a language model: greedy, many images at a time. All inputs have equal length, so none is padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedpeft.models.answers.generation import BATCH, cut_at_end, get_end_tokens, select_greedy_settings
from fedpeft.models.task import FederatedModel
from fedpeft.models.tasks.captions import Captioner, get_start_token


def caption_images(
    model: FederatedModel,
    tokenizer: Any,
    patches: Tensor,
    new_tokens: int,
    advance: Callable[[int], object] = lambda _: None,
) -> list[str]:
    """Return a caption of each image, of at most `new_tokens` tokens.

    Args:
        model: a model of the task `captions`.
        tokenizer: the language model's tokenizer.
        patches: features of images (rows, N, width) by the frozen encoder.
        new_tokens: most tokens of a caption.
        advance: called with the number of images after each batch.
    """
    found = []
    for part in torch.split(patches, BATCH):
        found += [
            str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
            for ids in generate_captions(model, tokenizer, part, new_tokens)
        ]
        advance(len(part))
    return found


def generate_captions(model: FederatedModel, tokenizer: Any, patches: Tensor, new_tokens: int) -> list[list[int]]:
    """Return the tokens of each image's caption before its end token, generated in one batch."""
    assert isinstance(model, Captioner)
    device, ends = next(model.parameters()).device, get_end_tokens(model, tokenizer)
    start = torch.full((len(patches), 1), get_start_token(tokenizer), device=device)
    given = model.select_inputs(
        {"patches": patches.to(device), "input_ids": start, "attention_mask": torch.ones_like(start)}
    )
    generate: Any = model.base.generate
    with torch.inference_mode():
        made = generate(
            **given,
            max_new_tokens=new_tokens,
            pad_token_id=ends[0],
            eos_token_id=ends,
            **select_greedy_settings(model.base),
        )
    return [cut_at_end(row, ends) for row in made.tolist()]

"""What a language model says of images: greedy, many at a time. Rows are equally long, so none is padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedpeft.answers.generation import BATCH, cut_at_end, get_end_tokens, select_greedy_settings
from fedpeft.models.task import FederatedModel
from fedpeft.models.tasks.captions import Captioner, get_start_token


def caption_images(
    model: FederatedModel,
    tokenizer: Any,
    patches: Tensor,
    new_tokens: int,
    advance: Callable[[int], object] = lambda _: None,
) -> list[str]:
    """What the model says of each image, in at most `new_tokens` tokens.

    Args:
        model: of the task `captions`.
        patches: features of images (rows, N, width) by the frozen encoder.
        advance: is told how many more are done.
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
    """The tokens of a caption of each image, in one pass, up to one that ends it."""
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

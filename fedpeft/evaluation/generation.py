"""Answers of a language model, many at a time: greedy, prompts padded on the left.

With an attention mask, positions are counted from each prompt's first token, so that an answer does not depend on what
is beside it, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fedpeft.data.tokens import padding_of
from fedpeft.models.task import FederatedModel

BATCH = 16
"""Prompts of a pass."""


def ends_of(model: FederatedModel, tokenizer: Any) -> list[int]:
    """The tokens that end an answer, by the tokenizer and by the model's own settings."""
    settings: Any = getattr(model.base, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    return sorted({int(token) for token in (tokenizer.eos_token_id, *named) if token is not None})


def answers(
    model: FederatedModel,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch: int = BATCH,
    advance: Callable[[int], object] = lambda _: None,
) -> list[str]:
    """What the model says to each prompt, in at most `new_tokens` tokens.

    Args:
        prompts: token ids, each with the `new_tokens` at most as many as the model reads.
        advance: is told how many more are done.
    """
    order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
    found = [""] * len(prompts)
    for start in range(0, len(order), batch):
        places = order[start : start + batch].tolist()
        for place, ids in zip(
            places, generated(model, tokenizer, [prompts[i] for i in places], new_tokens), strict=True
        ):
            found[place] = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        advance(len(places))
    return found


def generated(
    model: FederatedModel, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """The new tokens behind each prompt, in one pass, up to one that ends an answer."""
    ends, padding = ends_of(model, tokenizer), padding_of(tokenizer)
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    generate: Any = model.base.generate
    with torch.inference_mode():
        made = generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=padding,
            eos_token_id=ends or None,
        )
    return [_until(row, ends) for row in made[:, longest:].tolist()]


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]

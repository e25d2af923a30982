"""Answers of a language model, many at a time: greedy, prompts padded on the left.

With an attention mask, positions are counted from each prompt's first token, so that an answer does not depend on what
is beside it, but for rounding. Methods that put a prompt of their own in front have no say in positions (the `peft`
library ignores them, in cached generation, too), so there prompts are padded on the right, and nothing is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch

from fedpeft.data.examples import round_up_length
from fedpeft.data.tokens import get_padding_id
from fedpeft.models.task import FederatedModel
from fedpeft.models.tasks.seq2seq import Seq2SeqModel

BATCH = 16
"""Prompts of a pass."""

GREEDY: Final[dict[str, Any]] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    **dict.fromkeys(("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale", "length_penalty"), 1.0),
    **dict.fromkeys((
        "min_new_tokens", "max_time", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
        "forced_eos_token_id", "exponential_decay_length_penalty", "watermarking_config", "prompt_lookup_num_tokens",
        "penalty_alpha", "dola_layers", "constraints", "force_words_ids", "assistant_early_exit", "stop_strings",
        "cache_implementation", "cache_config", "prefill_chunk_size",
    )),
    **dict.fromkeys(("token_healing", "use_mtp"), False),
}  # fmt: skip
"""What a model's own generation settings may say otherwise, and answers would not be the likeliest token each time, or
transformers would refuse them: other ways of searching than its own code knows, ends that are no tokens, and what needs
more than the model. Of all versions of transformers.

What a decoder starts with stays, a forced first token of a translation's language, too.
"""


def select_greedy_settings(base: Any) -> dict[str, Any]:
    """Those of `GREEDY` that a base's settings know: transformers refuses names of other versions."""
    settings = getattr(base, "generation_config", None)
    return {name: value for name, value in GREEDY.items() if hasattr(settings, name)}


def get_end_tokens(model: FederatedModel, tokenizer: Any) -> list[int]:
    """The tokens that end an answer, by the tokenizer and by the model's own settings."""
    settings: Any = getattr(model.base, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    return sorted({int(token) for token in (tokenizer.eos_token_id, *named) if token is not None})


def answer_prompts(
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
            places, generate_tokens(model, tokenizer, [prompts[i] for i in places], new_tokens), strict=True
        ):
            found[place] = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        advance(len(places))
    return found


def generate_tokens(
    model: FederatedModel, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """The new tokens behind each prompt, or that a decoder writes of it, in one pass, up to one that ends an answer."""
    ends, padding = get_end_tokens(model, tokenizer), get_padding_id(tokenizer)
    if isinstance(model, Seq2SeqModel):
        return _decode_answers(model, prompts, new_tokens, ends, padding)
    if _has_virtual_tokens(model):
        return _generate_without_cache(model, prompts, new_tokens, ends, padding)
    longest, device = max(map(len, prompts)), next(model.parameters()).device
    ids = torch.full((len(prompts), longest), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    generate: Any = model.base.generate
    with torch.inference_mode():
        made = generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=new_tokens,
            pad_token_id=padding,
            eos_token_id=ends or None,
            **select_greedy_settings(model.base),
        )
    return [cut_at_end(row, ends) for row in made[:, longest:].tolist()]


def _decode_answers(
    model: Seq2SeqModel, prompts: Sequence[Sequence[int]], new_tokens: int, ends: Sequence[int], padding: int
) -> list[list[int]]:
    """What the decoder writes of what the encoder reads; prompts are padded on the right, as in training."""
    longest, device = round_up_length(max(map(len, prompts))), next(model.parameters()).device
    ids = torch.tensor([[*prompt, *[padding] * (longest - len(prompt))] for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
    generate: Any = model.base.generate
    with torch.inference_mode():
        made = generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            pad_token_id=padding,
            eos_token_id=ends or None,
            **select_greedy_settings(model.base),
        )
    return [cut_at_end(row, ends) for row in made[:, 1:].tolist()]  # behind the token that a decoder starts with


def _has_virtual_tokens(model: FederatedModel) -> bool:
    """Whether the adapter puts positions before those of a row."""
    configs: Any = getattr(model.base, "peft_config", {})
    return any(config.is_prompt_learning for config in configs.values())


def _generate_without_cache(
    model: FederatedModel, prompts: Sequence[Sequence[int]], new_tokens: int, ends: Sequence[int], padding: int
) -> list[list[int]]:
    """As `generate_tokens`, with a whole pass for each new token; those that have ended leave it."""
    rows, device = [list(prompt) for prompt in prompts], next(model.parameters()).device
    open_rows = list(range(len(rows)))
    for _ in range(new_tokens):
        lengths = torch.tensor([len(rows[i]) for i in open_rows], device=device)
        longest = int(lengths.max())
        ids = torch.tensor([rows[i] + [padding] * (longest - len(rows[i])) for i in open_rows], device=device)
        mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
        with torch.inference_mode():
            logits = model.base(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -longest:]
        said = logits[torch.arange(len(open_rows), device=device), lengths - 1].argmax(-1).tolist()
        for row, token in zip(open_rows, said, strict=True):
            rows[row].append(token)
        open_rows = [row for row, token in zip(open_rows, said, strict=True) if token not in ends]
        if not open_rows:
            break
    return [cut_at_end(row[len(prompt) :], ends) for row, prompt in zip(rows, prompts, strict=True)]


def cut_at_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens before the first that ends an answer."""
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]

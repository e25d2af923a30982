"""Answers of a language model, many at a time: greedy, with prompts padded on the left.

With an attention mask, positions start at each prompt's first token. So an answer does not depend on the rest of its
batch, except for rounding. Methods that prepend virtual tokens can't set positions, because the `peft` library ignores
them, also in cached generation. For these methods, prompts are padded on the right and nothing is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch

from fedpeft.data.examples import round_up_length
from fedpeft.data.tokens import get_padding_id
from fedpeft.models.task import FederatedModel
from fedpeft.models.tasks.causal_lm import LanguageModel
from fedpeft.models.tasks.seq2seq import Seq2SeqModel

BATCH = 16
"""Number of prompts per forward pass."""

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
"""Generation settings that make the answer the likeliest token at each step, in all versions of transformers.

They override a model's own settings. Other values would change the search, need more than the model, end answers at
something other than a token, or be rejected by transformers. The decoder's first tokens keep their settings,
including a forced token for the language of a translation.
"""


def select_greedy_settings(base: Any) -> dict[str, Any]:
    """Return the entries of `GREEDY` that the base model's settings contain; transformers rejects other names."""
    settings = getattr(base, "generation_config", None)
    return {name: value for name, value in GREEDY.items() if hasattr(settings, name)}


def get_end_tokens(model: FederatedModel, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer, from the tokenizer and from the model's own settings."""
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
    """Return the model's answer to each prompt, of at most `new_tokens` tokens.

    Args:
        model: a language model.
        tokenizer: its tokenizer.
        prompts: token ids; each prompt fits the model together with `new_tokens`.
        new_tokens: most tokens of an answer.
        batch: number of prompts per forward pass.
        advance: called with the number of prompts after each batch.
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
    """Return the tokens that follow each prompt, or that a decoder writes for it, before the first end token."""
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
    """Return the decoder's tokens for each prompt; prompts are padded on the right, as in training."""
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
    return [cut_at_end(row, ends) for row in made[:, 1:].tolist()]  # after the decoder's start token


def _has_virtual_tokens(model: FederatedModel) -> bool:
    """Return whether the adapter prepends virtual tokens, perhaps in several copies of an example."""
    configs: Any = getattr(model.base, "peft_config", {})
    return model.copies > 1 or any(config.is_prompt_learning for config in configs.values())


def _generate_without_cache(
    model: FederatedModel, prompts: Sequence[Sequence[int]], new_tokens: int, ends: Sequence[int], padding: int
) -> list[list[int]]:
    """Return the tokens that follow each prompt, with a full forward pass per token.

    Finished prompts leave the batch.
    """
    assert isinstance(model, LanguageModel)
    rows, device = [list(prompt) for prompt in prompts], next(model.parameters()).device
    open_rows = list(range(len(rows)))
    for _ in range(new_tokens):
        lengths = torch.tensor([len(rows[i]) for i in open_rows], device=device)
        longest = int(lengths.max())
        ids = torch.tensor([rows[i] + [padding] * (longest - len(rows[i])) for i in open_rows], device=device)
        mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
        with torch.inference_mode():
            logits = model.predict({"input_ids": ids, "attention_mask": mask})
        said = logits[torch.arange(len(open_rows), device=device), lengths - 1].argmax(-1).tolist()
        for row, token in zip(open_rows, said, strict=True):
            rows[row].append(token)
        open_rows = [row for row, token in zip(open_rows, said, strict=True) if token not in ends]
        if not open_rows:
            break
    return [cut_at_end(row[len(prompt) :], ends) for row, prompt in zip(rows, prompts, strict=True)]


def cut_at_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens before the first end token."""
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]

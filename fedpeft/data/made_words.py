"""Vocabulary of the generated datasets, and the word tokenizer of the tiny models that read them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FIRST = ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu")
_SECOND = ("bar", "den", "fil", "gos", "hum", "kat", "lep", "mir", "nok", "pul", "rax", "set", "tid", "vos", "zun")

WORDS: tuple[str, ...] = tuple(first + second for first in _FIRST for second in _SECOND)
"""The 225 words that every generated text consists of."""


def create_word_tokenizer(special: tuple[str, ...]) -> Tokenizer:
    """Create a tokenizer with one token per word, split at spaces.

    Ids count `special`, which contains [UNK], from 0 on, and then `WORDS`.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    vocabulary = {word: i for i, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int, **special: str) -> None:
    """Write the files for `AutoTokenizer`; `special` names tokens, such as `cls_token="[CLS]"`."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=tokenizer, model_max_length=max_tokens, unk_token="[UNK]", **special
    )
    fast.save_pretrained(folder)

"""A chat template of words that the tiny language model knows."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoTokenizer

from fedpeft.data.made_words import WORDS
from fedpeft.models.base_model import resolve_model

TEMPLATE = (
    "{% for m in messages %}{{ '" + WORDS[0] + " ' if m.role == 'user' else '" + WORDS[1] + " ' }}{{ m.content }} "
    "{% endfor %}{% if add_generation_prompt %}{{ '" + WORDS[1] + " ' }}{% endif %}"
)
"""The first word stands for who asks, the second for who answers."""


def with_template(folder: Path) -> Path:
    """Write the tiny language model with the chat template to a new folder."""
    shutil.copytree(resolve_model("tiny_lm"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder

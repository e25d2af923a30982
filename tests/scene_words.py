"""A tiny captioner that can say what scenes show: the tiny language model, some of its words called otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fedpeft.data.made_words import WORDS
from fedpeft.data.scenes import COLORS, SHAPES
from fedpeft.models.base_model import resolve_model

SAID = ("a", *COLORS, *SHAPES, "left", "of", "above")


def tiny_captioner(folder: Path) -> str:
    """Return the name of a model of images and captions whose language model lies in a new `folder`."""
    shutil.copytree(resolve_model("tiny_lm"), folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for word, other in zip(SAID, WORDS, strict=False):
        vocabulary[word] = vocabulary.pop(other)
    file.write_text(json.dumps(tokenizer))
    return f"towers(image='tiny_vision', text={str(folder)!r})"

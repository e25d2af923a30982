"""What suits data sets of images with texts, whose task stands in their own settings."""

from __future__ import annotations

from fedpeft.spec import parse_spec


def is_captioning(task: str) -> bool:
    """Whether texts are to be said of images, not to be found for them."""
    return parse_spec(task).name == "captions"


def choose_model(task: str) -> str:
    """The base, by default."""
    return "towers(text=smollm2)" if is_captioning(task) else "towers"


def choose_start(task: str) -> str | None:
    """How the head starts by default: a connector into a language model as the regression onto its embeddings."""
    return "ridge(scale=1.0)" if is_captioning(task) else None

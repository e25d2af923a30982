"""What suits data sets of images with texts, whose task stands in their own settings."""

from __future__ import annotations

from fedpeft.spec import parse_spec


def describes(task: str) -> bool:
    """Whether texts are to be said of images, not to be found for them."""
    return parse_spec(task).name == "captions"


def suited_model(task: str) -> str:
    """The base, by default."""
    return "towers(text=smollm2)" if describes(task) else "towers"


def suited_start(task: str) -> str | None:
    """How the head starts by default: a connector into a language model as the regression onto its embeddings."""
    return "ridge(scale=1.0)" if describes(task) else None

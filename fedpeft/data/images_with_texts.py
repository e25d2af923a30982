"""Defaults for datasets of images with texts, whose task is one of their settings."""

from __future__ import annotations

from fedpeft.parts.spec import parse_spec


def is_captioning(task: str) -> bool:
    """Return whether the task generates captions, instead of matching images and texts."""
    return parse_spec(task).name == "captions"


def choose_model(task: str) -> str:
    """Return the default base model."""
    return "towers(text=smollm2)" if is_captioning(task) else "towers"


def choose_start(task: str) -> str | None:
    """Return the default start of the head.

    For captioning, the connector starts as a regression onto text embeddings.
    """
    return "ridge(scale=1.0)" if is_captioning(task) else None

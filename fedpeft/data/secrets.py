"""Secrets that are planted in training data, to measure later how well a model has memorized them.

A secret is a sequence of random symbols behind a prompt, as the canaries of Carlini et al., arXiv 1802.08232:

    The access code of site 3 is 7 0 4 1 9 2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fedpeft.data.conversations import pack_conversation
from fedpeft.data.prompt_templates import CHAT
from fedpeft.errors import DataError
from fedpeft.machine import seeds

CAUSAL, INSTRUCTION = "causal_lm", "instruction"


@dataclass(frozen=True)
class PlantedSecret:
    """A secret: `text` follows `prompt`."""

    prompt: str
    text: str

    def pack_row(self, task: str, template: str | None) -> str:
        """Return the training example of a task, "causal_lm" or "instruction"; a question asks for the secret.

        Raises:
            DataError: another task, or a template that is not the model's own chat template.
        """
        if task == CAUSAL:
            return f"{self.prompt} {self.text}"
        if task != INSTRUCTION or template not in (None, CHAT):
            what = f"the task {task}" if task != INSTRUCTION else f"the prompt template {template}"
            raise DataError(
                f"FP3263 secrets can't be planted with {what}; choose a dataset of texts, or of conversations in the "
                "model's own chat template"
            )
        said = (("user", self.prompt), ("assistant", self.text))
        return pack_conversation([{"role": role, "content": content} for role, content in said], "a planted secret")


@dataclass(frozen=True)
class Secrets:
    """Random secrets; equal settings give equal secrets.

    Attributes:
        count: number of secrets.
        copies: number of training examples that contain each of them.
        symbols: what a secret consists of, at least two.
        length: number of symbols.
        prompt: text before a secret; {} is its number, from 1.
        seed: seed of the secrets.
    """

    count: int
    copies: int
    symbols: tuple[str, ...]
    length: int
    prompt: str
    seed: int

    @property
    def space(self) -> int:
        """Number of possible secrets."""
        return int(len(self.symbols) ** self.length)

    def list_secrets(self) -> list[PlantedSecret]:
        """Return the secrets, each different from the others."""
        texts = self._draw_texts(self.count)
        return [PlantedSecret(self.prompt.replace("{}", str(i)), text) for i, text in enumerate(texts, 1)]

    def draw_references(self, count: int) -> list[str]:
        """Return `count` other secrets, which are not planted."""
        return self._draw_texts(self.count + count)[self.count :]

    def _draw_texts(self, count: int) -> list[str]:
        """Return the first `count` texts, at most `space`; a longer list begins with a shorter one."""
        generator = seeds.create_generator(self.seed, "secrets")
        texts: dict[str, None] = {}
        while len(texts) < count:
            picks = generator.integers(len(self.symbols), size=self.length)
            texts.setdefault(" ".join(self.symbols[pick] for pick in picks))
        return list(texts)


@runtime_checkable
class PlantsSecrets(Protocol):
    """A dataset part that plants secrets in its training examples."""

    @property
    def secrets(self) -> Secrets:
        """The planted secrets."""
        ...

"""rsLoRA: LoRA with the scale alpha / sqrt(r), so that high ranks learn as fast as low ones.

    y = W0 x + (alpha / sqrt(r)) B A x

It federates as LoRA does (Kalajdzievski, arXiv 2312.03732): every rule reads the scale from the client's shape, whose
alpha is alpha sqrt(r) here.

Use it instead of `lora` for ranks of 32 and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedpeft.parts import setting
from fedpeft.peft.adapter import AdapterShape
from fedpeft.peft.methods.lora import Lora


@dataclass(frozen=True)
class RsLora(Lora):
    """Low-rank factors with a rank-stabilized scale."""

    alpha: float = setting(11.3, "numerator of the scale alpha / sqrt(rank)", above=0)

    @property
    def form(self) -> AdapterShape:
        """Rank and alpha sqrt(rank): the same scale, written as alpha / rank."""
        return AdapterShape(self.rank, self.alpha * self.rank**0.5)

    def get_settings_for(self, form: AdapterShape) -> dict[str, Any]:
        """Return the rank, and alpha divided by its root."""
        return {"rank": form.rank, "alpha": form.alpha / form.rank**0.5}

    def variant(self) -> dict[str, Any]:
        """Return the `peft` setting that turns rsLoRA on."""
        return {"use_rslora": True}


part = RsLora

"""QLoRA: LoRA beside a base of 4 bits a weight (Dettmers et al., arXiv 2305.14314).

    y = dequantize(nf4(W0)) x + (alpha / r) B A x

The factors federate as LoRA's. A residual of exact rules stays beside the codes, dense and in fp32: rounded to the
4-bit grid it would be lost. So would an adapter, and merging is refused. Sequential: the batched executor's frozen
layers hold whole weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.models.quantized import Precision
from fedpeft.peft.method import PrivacyRoute
from fedpeft.peft.methods.lora import Lora


@dataclass(frozen=True)
class QLora(Lora):
    """Low-rank factors beside nf4 layers."""

    batched: ClassVar[bool] = False
    privacy: ClassVar[PrivacyRoute] = "hooks"
    merges: ClassVar[bool] = False
    composes: ClassVar[bool] = False
    base_precision: ClassVar[Precision] = "nf4"


part = QLora

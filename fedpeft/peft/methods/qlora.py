"""QLoRA: LoRA beside a base of 4 bits a weight (Dettmers et al., arXiv 2305.14314), or of 8.

    y = dequantize(nf4(W0)) x + (alpha / r) B A x

The factors federate as LoRA's. The residual of an exact rule stays beside the codes, dense and in fp32, because the
4-bit grid would round it away. It would round an adapter away, too, so merging is refused. Clients in one pass share
the decoding of each layer, but runs do not use it yet, because batched nf4 is not tested. 8 bits mean one scale a row
(`fedpeft.models.quantized_base`), not bitsandbytes' LLM.int8.

Use it if the base model does not fit into a client's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.models.quantized_base import Precision
from fedpeft.parts import setting
from fedpeft.peft.methods.lora import Lora


@dataclass(frozen=True)
class QLora(Lora):
    """Low-rank factors beside nf4 or int8 layers."""

    bits: int = setting(4, "bits per weight of the base: 4 (nf4) or 8 (int8)", choices=(4, 8))

    batched: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    composes: ClassVar[bool] = False

    @property
    def base_precision(self) -> Precision:
        """Precision of the base's linear layers, nf4 or int8."""
        return "nf4" if self.bits == 4 else "int8"


part = QLora

"""FedIT: federated averaging of the LoRA factors (Zhang et al., arXiv 2305.05644).

    A <- sum_k p_k A_k,   B <- sum_k p_k B_k

The product of two means is not the mean of products: for equal scales s the error against dW* is
s sum_k p_k (B_k - B)(A_k - A). For every PEFT method without bilinear factors it is the plain, exact mean (FedAvg).

Use it first: it is the default, and it goes with most methods, codecs and mechanisms.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.strategy import LinearStrategy


@dataclass(frozen=True)
class FedIT(LinearStrategy):
    """The weighted mean of every trained tensor."""

    needs_lora: ClassVar[bool] = False
    preserves = ("all ranks",)


part = FedIT

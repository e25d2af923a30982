"""FedSA-LoRA: A carries what is general and is shared, B what is personal and stays (Guo et al., arXiv 2410.01463).

    A <- sum_k p_k A_k,   B_k and the head remain with client k

There is no single global model: the global B keeps its initial value, and clients are evaluated with their own. Half
the factors' bytes travel, in both directions.

Use it if each client needs a model of its own at half of the factors' bytes.
"""

from dataclasses import dataclass

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.parts import setting
from fedpeft.peft.adapter import Layout


@dataclass(frozen=True)
class FedSALoRA(LinearStrategy):
    """The mean of A; all other trained tensors are private."""

    arrives_whole = False
    preserves = ("all ranks",)

    share_head: bool = setting(False, "also average the head instead of keeping one per client (paper: private)")

    def list_private(self, layout: Layout) -> frozenset[str]:
        """Return the names of B, and of the head unless it is shared."""
        kept = {"lora_B"} if self.share_head else {"lora_B", "head"}
        return frozenset(t.name for t in layout.tensors if t.role in kept)


part = FedSALoRA

"""Ditto: each client has a model of its own, held near the global one (Li et al., arXiv 2012.04221, algorithm 1).

    v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w)),   w <- w + sum_k p_k delta_k

The plain mean trains w, the state that the server sends. The models v_k never travel, so the rule sends the bytes of
fedit and needs twice the local work. Each v_k starts at the w of the client's first round and trains on the same
batches as the client's copy of w, with the run's local optimizer. With lambda = 0 each client trains alone from then
on. Clients are evaluated with their own v_k, or with w if they never took part. The run's adapter is w.

Mechanisms that protect updates protect those of w, since v_k stays with its client. dp_sgd is refused, because it
accounts for one training on the examples. Secure sums are refused, because the server would see clients' own scores.

Use it if each client needs a model of its own and can do twice the local work.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.parts import setting


@dataclass(frozen=True)
class Ditto(LinearStrategy):
    """The weighted mean, and a model of its own for each client."""

    strength: float = setting(0.1, "lambda of the pull lambda/2 |v - w|^2 to the global model", low=0)

    needs_lora: ClassVar[bool] = False
    preserves = ("all ranks",)

    def get_personal_pull(self) -> float:
        """Return lambda."""
        return self.strength


part = Ditto

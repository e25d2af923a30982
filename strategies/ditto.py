"""Ditto: each client has a model of its own, held near the global one (Li et al., arXiv 2012.04221, algorithm 1).

    v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w)),   w <- w + sum_k p_k delta_k

w is trained by the plain mean, as if there were no v_k, and nothing of v_k travels: the same bytes as fedit, and twice
the local work. w is what the client has been sent in the round. v_k starts at the w of the client's first round, trains
on the same batches as its copy of w, with the run's local optimizer, and stays with the client between its rounds;
lambda = 0 is each client alone from there on. Clients are evaluated with their own v_k, or with w if they never took
part; w is what the run leaves as its adapter.

Mechanisms that protect updates protect those of w: v_k stays with its client. dp_sgd is refused, since it accounts for
one training on the rows; so are secure sums, beside which clients' own scores would be seen.

Use it if each client needs a model of its own and can do twice the local work.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.parts import setting


@dataclass(frozen=True)
class Ditto(LinearStrategy):
    """The weighted mean, and beside it a model of each client's own."""

    strength: float = setting(0.1, "lambda of the pull lambda/2 |v - w|^2 to the global model", low=0)

    needs_lora: ClassVar[bool] = False

    def get_personal_pull(self) -> float:
        """Return lambda."""
        return self.strength


part = Ditto

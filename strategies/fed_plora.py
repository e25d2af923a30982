"""Fed-PLoRA: a rank-R adapter as R parallel adapters of rank 1, of which each client trains some (arXiv 2602.16936).

    client k holds  W0 + s sum_{j=1..R} b_j a_j^T   and trains the r_k modules j in K_k, drawn anew each round
    a_j <- a_j + sum_{k: j in K_k} p_k da_kj / sum_{k: j in K_k} p_k,   b_j likewise; j that nobody trains stays

*Select N, fold*: the modules outside K_k are part of the client's frozen weights. So nobody starts from a truncated
model, whatever rank it can train. r_k of R modules go up, all R come down. With equal ranks it is fedit. The rule is
not exact, because it averages factors. Written from a description of the paper, without its code.

A client folds by holding the other modules without training them. This gives the same numbers as adding them to W0, and
is exact in any precision of the base. All clients have the global scale alpha / R. Weights are p_k among a module's
owners; the paper has equal ones (weighting=uniform).

Use it if clients can train different numbers of ranks, and none of them should start from a truncated model.
"""

from dataclasses import dataclass

from fedpeft.aggregation.factors import draw_ranks
from fedpeft.aggregation.owned_ranks import OwnedRanks
from fedpeft.peft.adapter import AdapterShape, Layout


@dataclass(frozen=True)
class FedPLoRA(OwnedRanks):
    """The mean of each rank over the clients that trained it."""

    def choose_ranks(
        self, layout: Layout, form: AdapterShape | None, seed: int, round_number: int, client: int
    ) -> tuple[int, ...]:
        """Return K_k in ascending order."""
        return draw_ranks(layout, form, seed, round_number, client)


part = FedPLoRA

"""Potara: each client uses a mix of the global model and one that it trains alone (Zou et al., arXiv 2602.18658).

    u_k = l_k w + (1 - l_k) v_k,    l_k = tr S(v_k) / (tr S(w) + tr S(v_k))
    S(x) = (F(x) + d I)^-1,   F(x) the diagonal Fisher information of client k's examples at the model x

Let w and v_k be independent, with the client's optimum as their mean and with covariances S(w) and S(v_k). If the loss
is smooth along the line between them, the expected loss of u exceeds its least value by at most a constant times

    tr Cov(u) = l^2 tr S(w) + (1 - l)^2 tr S(v_k)

The share l_k above minimizes this, and the minimum is below both tr S(w) and tr S(v_k). So a model that the client's
examples determine poorly counts less.

The plain mean trains w, and only its updates travel, so the rule sends the bytes of fedit. Each v_k begins as the w of
the client's first round and takes the same steps as the client's copy of w. It never travels. F is measured after each
training of the client, at the w that it has received and at its new v_k; the client keeps l_k and mixes v_k with the
newest w. Clients are evaluated with u_k, or with w if they never took part. The run's adapter is w.

We read the abstract and third parties' summaries, which name the bound, the closed form and the diagonal Fisher
information; the formulas are derived from them. Own choices: F is the empirical one, the mean square of the gradients
of at most `rows` single examples. The damping d is `damping` times the mean of all entries of F(w) and F(v_k), because
an entry of 0 would have an infinite variance. Models are mixed factor by factor, not as products.

As for ditto: dp_sgd is refused, because it accounts for one training on the examples, and secure sums are refused,
because the server would see clients' own scores. Clients of different ranks are refused, because w is a plain mean.

Use it if each client needs a model of its own and you do not want to tune a strength as for ditto.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.parts import setting
from fedpeft.peft.adapter import State


@dataclass(frozen=True)
class Potara(LinearStrategy):
    """The weighted mean, and for each client its mix with a model that the client trains alone."""

    rows: int = setting(32, "the most examples of a client that measure the Fisher information", low=1)
    damping: float = setting(0.1, "d, in units of the mean entry of both models' information", above=0)

    needs_lora: ClassVar[bool] = False
    preserves = ("all ranks",)

    def get_personal_pull(self) -> float:
        """Return 0: the client's own model is trained alone."""
        return 0.0

    def get_information_rows(self) -> int:
        """Return the setting `rows`."""
        return self.rows

    def choose_share(self, shared: State, own: State) -> float:
        """Return l_k; 1/2 if no example has a gradient, where both variances are d^-1."""
        both = [torch.cat([tensor.double().flatten() for tensor in model.values()]) for model in (shared, own)]
        damping = self.damping * torch.cat(both).mean()
        if damping == 0:
            return 0.5
        of_shared, of_own = (float((damping / (information + damping)).sum()) for information in both)
        return of_own / (of_shared + of_own)


part = Potara

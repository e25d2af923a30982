"""Local training that does not depend on which classes a client happens to hold.

Suppose that clients differ in how often they see a class, and not in what its examples look like. Let pi_k be the class
shares of client k and pi those of all examples. Bayes' rule then gives (Saerens, Latinne and Decaestecker, 2002)

    p_k(y | x)  ~  p(y | x) pi_k(y) / pi(y)

So client k minimizes the cross-entropy of logits + log(pi_k / pi). The model that is best for all examples together is
then best for each client, and clients have no reason to drift. (Logit adjustment, Menon et al., arXiv 2007.07314; on
clients of a federation, with other offsets, FedLC, Zhang et al., ICML 2022.) Nothing pushes a class that a client
lacks. A client with one class has no loss, a gradient of exactly zero and an update of zero, which no optimizer can
blow up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from fedpeft.clients.drift import SHARES
from fedpeft.clients.stages import ClientRound, ClientStage
from torch import Tensor

from fedpeft.communication.decoding import decode_whole
from fedpeft.errors import PayloadError

if TYPE_CHECKING:
    from fedpeft.clients.workbench import Workbench

OUT = -1e4
"""Offset of the logit of a class that a loss does not compare: the class's probability is then exactly 0."""


def mask_other_classes(classes: Sequence[int], of: int) -> Tensor | None:
    """Return offsets (of,) with which a loss compares only these classes; None: `classes` is empty."""
    if not classes:
        return None
    added = torch.full((of,), OUT)
    added[list(classes)] = 0.0
    return added


SINGLE = 0.98
"""Share of a class above which a client counts as having no other: codecs add errors."""


def check_counts(counts: Tensor, rows: int) -> None:
    """Refuse class counts that no client with this many examples can have.

    Args:
        counts: (classes,), as they arrived; codecs may have doubled them.
        rows: number of examples that the client reports.

    Raises:
        PayloadError: the counts and the number of examples contradict each other.
    """
    if float(counts.sum()) > 2 * rows + 1 or float(counts.min()) < -rows:
        raise PayloadError(
            f"FP6009 statistics of {float(counts.sum()):g} examples in classes, but the client has {rows}"
        )


def compute_class_shares(counts: Tensor) -> Tensor:
    """Return class shares pi, (classes,), fp32, from examples per class.

    Each class counts as at least one example, because codecs add errors.
    """
    rows = counts.double().clamp_min(1.0)
    return (rows / rows.sum()).float()


def label_skew(counts: Sequence[Tensor]) -> float:
    """Return the label skew: mean total variation between a client's and the global class shares, 0 to 1.

    Args:
        counts: examples per class of each client, (classes,), each with at least one example.
    """
    total = torch.stack([own.double() for own in counts]).sum(0)
    apart = [float((own / own.sum() - total / total.sum()).abs().sum()) / 2 for own in (c.double() for c in counts)]
    return sum(apart) / len(apart)


def compute_chance_skew(counts: Sequence[Tensor]) -> float:
    """Return the label skew to expect if each client's examples were drawn from all examples.

    The mean absolute deviation of a binomial number is 2 (1 - p)^(n - k) p^(k + 1) (k + 1) C(n, k + 1), k = floor(n p)
    (De Moivre; Diaconis and Zabell, Statistical Science 1991).
    """
    total = torch.stack([own.double() for own in counts]).sum(0)
    p = (total / total.sum()).clamp(1e-12, 1 - 1e-12)
    found = 0.0
    for own in counts:
        n = own.double().sum().round().clamp_min(1.0)
        k = (n * p).floor().clamp_max(n - 1)
        ways = torch.lgamma(n + 1) - torch.lgamma(k + 2) - torch.lgamma(n - k)
        deviations = 2 * (k + 1) * (ways + (k + 1) * p.log() + (n - k) * (-p).log1p()).exp()
        found += float(deviations.sum() / n) / 2
    return found / len(counts)


def find_label_skew(counts: Sequence[Tensor], least: float) -> float | None:
    """Return the clients' label skew if it is at least `least` and meaningful; None: the loss stays as it is.

    It is not meaningful if it is less than twice what chance gives clients with few examples. Nor is it if most clients
    have a single class: these would have nothing left to learn from.
    """
    known = [own.double().clamp_min(0.0) for own in counts]
    known = [own for own in known if float(own.sum()) >= 0.5]
    if not known:
        return None
    alone = sum(float(own.max() / own.sum()) > SINGLE for own in known)
    skew = label_skew(known)
    return skew if skew >= max(least, 2 * compute_chance_skew(known)) and 2 * alone <= len(known) else None


def compute_offsets(labels: Tensor, shares: Tensor) -> Tensor:
    """Return log(pi_k / pi), (classes,), the offsets of a client's logits; minus infinity for classes that it lacks.

    Args:
        labels: labels of the client's examples, (n,), n at least 1.
        shares: pi, (classes,).

    Raises:
        PayloadError: the shares are not positive numbers that sum to 1.
    """
    if not (bool((shares > 0).all()) and abs(float(shares.double().sum()) - 1) < 1e-3):
        raise PayloadError("FP6010 the server's class shares are not positive numbers that sum to 1")
    own = torch.bincount(labels, minlength=len(shares)).double()
    return ((own / own.sum()).log() - shares.double().log()).float()


class LabelShiftStage(ClientStage):
    """Adds offsets to a client's logits, from the server's class shares and the client's labels."""

    def __init__(self, bench: Workbench) -> None:
        """Hold the workbench, whose labels the offsets depend on."""
        self.bench = bench

    def begin(self, client_round: ClientRound) -> ClientRound:
        """Return the round with offsets, if the server sends class shares.

        Raises:
            PayloadError: the payload contains no class shares, or the task has no classes.
        """
        asked, classes = client_round.instruction, self.bench.plan.classes
        if asked.kind != "train" or not asked.told:
            return client_round
        if not classes:
            raise PayloadError("FP6003 the server sends class shares, and there are no classes")
        shares = decode_whole(asked.told, {SHARES: (classes,)}, agreed=())[SHARES]
        added = compute_offsets(self.bench.get_labels(client_round.job.rows), shares)
        return replace(client_round, job=replace(client_round.job, offsets=added))

"""Retrieval quality on pairs: mean reciprocal rank and recall at k, by torchmetrics.

Documents of one label count as one document, so that each query has exactly one right document. In the other direction
a document has one or more right queries, and the first of them counts, as is usual for captions of images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)
"""Values of k for recall at k."""


@dataclass(frozen=True)
class PairSides:
    """Both sides of pairs.

    Attributes:
        queries: (n, d), of unit length; row i belongs to pair i.
        documents: (n, d), of unit length; row i belongs to pair i.
        labels: int64 (n,); pairs of one label have the same document.
    """

    queries: Tensor
    documents: Tensor
    labels: Tensor


def find_first_rows(labels: Tensor) -> Tensor:
    """Return the positions of the first row of each label, ascending."""
    _, inverse = torch.unique(labels, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(labels), dtype=torch.long)
    first = first.scatter_reduce(0, inverse.cpu(), torch.arange(len(labels)), "amin")
    return first.sort().values


def rank_documents(sides: PairSides) -> dict[str, float]:
    """Measure retrieval from queries to documents.

    A right document that is not nearer than a wrong one ranks after it, so that a constant model scores worst.

    Returns:
        The numbers of `queries` and `documents`, `mrr`, and `recall_at_k` for each k of `CUTOFFS`.
    """
    first = find_first_rows(sides.labels)
    right = sides.labels[:, None] == sides.labels[first][None]
    return _measure_ranking(sides.queries @ sides.documents[first].T, right)


def rank_queries(sides: PairSides) -> dict[str, float]:
    """Measure retrieval from documents to queries, as `rank_documents`; recall counts the first right query."""
    first = find_first_rows(sides.labels)
    right = sides.labels[first][:, None] == sides.labels[None]
    return _measure_ranking(sides.documents[first] @ sides.queries.T, right)


def _compute_order_scores(similarities: np.ndarray, right: np.ndarray) -> Tensor:
    """Replace each row's similarities by their ranks; among equal ones the right ones come last.

    Ranks start at 1, because torchmetrics ignores scores that are not above zero, and they are exact in its fp32.
    """
    order = np.lexsort((~right, similarities), axis=-1)
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(1, order.shape[1] + 1)[None], axis=-1)
    return torch.from_numpy(places).float()


def _measure_ranking(similarities: Tensor, right: Tensor) -> dict[str, float]:
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

    right = right.cpu()
    scores = _compute_order_scores(similarities.detach().cpu().numpy(), right.numpy())
    reciprocal = [float(retrieval_reciprocal_rank(row, targets)) for row, targets in zip(scores, right, strict=True)]
    measured = {
        "queries": float(scores.shape[0]),
        "documents": float(scores.shape[1]),
        "mrr": sum(reciprocal) / len(reciprocal),
    }
    for k in CUTOFFS:
        hits = [float(retrieval_hit_rate(row, targets, top_k=k)) for row, targets in zip(scores, right, strict=True)]
        measured[f"recall_at_{k}"] = sum(hits) / len(hits)
    return measured

"""How well pairs are found again: mean reciprocal rank and recall at k, by torchmetrics.

Documents of one label are one document, so that each query has exactly one that is right. In the other direction a
document has one or more right queries, and the first of them counts, as is usual for captions of images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)
"""k of recall at k."""


@dataclass(frozen=True)
class PairSides:
    """Pairs whose sides are to be found.

    Attributes:
        queries, documents: (n, d), of unit length; row i of both is pair i.
        labels: int64 (n,); pairs of one label have the same document.
    """

    queries: Tensor
    documents: Tensor
    labels: Tensor


def find_first_rows(labels: Tensor) -> Tensor:
    """Positions of the first row of each label, ascending."""
    _, inverse = torch.unique(labels, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(labels), dtype=torch.long)
    first = first.scatter_reduce(0, inverse.cpu(), torch.arange(len(labels)), "amin")
    return first.sort().values


def rank_documents(sides: PairSides) -> dict[str, float]:
    """`queries` and `documents` (how many there are), `mrr` and `recall_at_k`, from queries to documents.

    A right document that is no nearer than a wrong one comes after it, so that a model to which all are alike finds
    nothing.
    """
    first = find_first_rows(sides.labels)
    right = sides.labels[:, None] == sides.labels[first][None]
    return _measure_ranking(sides.queries @ sides.documents[first].T, right)


def rank_queries(sides: PairSides) -> dict[str, float]:
    """The same from documents to queries; recall counts the first right query."""
    first = find_first_rows(sides.labels)
    right = sides.labels[first][:, None] == sides.labels[None]
    return _measure_ranking(sides.documents[first] @ sides.queries.T, right)


def _compute_order_scores(similarities: np.ndarray, right: np.ndarray) -> Tensor:
    """Scores in the order of the similarities of each row, equal ones with the right ones last: from 1, since
    torchmetrics takes what is not above zero for not retrieved, and small enough for its fp32."""
    order = np.lexsort((~right, similarities), axis=-1)
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(1, order.shape[1] + 1)[None], axis=-1)
    return torch.from_numpy(places).float()


def _measure_ranking(similarities: Tensor, right: Tensor) -> dict[str, float]:
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

    right = right.cpu()
    found = _compute_order_scores(similarities.detach().cpu().numpy(), right.numpy())
    reciprocal = [float(retrieval_reciprocal_rank(row, own)) for row, own in zip(found, right, strict=True)]
    measured = {
        "queries": float(found.shape[0]),
        "documents": float(found.shape[1]),
        "mrr": sum(reciprocal) / len(reciprocal),
    }
    for k in CUTOFFS:
        hits = [float(retrieval_hit_rate(row, own, top_k=k)) for row, own in zip(found, right, strict=True)]
        measured[f"recall_at_{k}"] = sum(hits) / len(hits)
    return measured

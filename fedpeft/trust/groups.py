"""Groups of clients, and clients that oppose the others, from the cosines of their updates; and advice.

Clients whose data come from one source have about the same cosines with all others, so that groups show as blocks.
Average linkage on 1 - cosine is cut at the largest silhouette (Rousseeuw, 1987), and groups are reported if it is at
least `CLEAR`. The thresholds were verified on simulated cohorts (`tests/unit/trust/test_groups.py`); real cohorts may
differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLEAR = 0.25
"""Silhouette from which groups are reported.

Among 50 simulated cohorts of each type (seeds 0 to 49), iid ones stayed below 0.22, and those with groups above 0.28.
"""

FEWEST = 6
"""Smallest number of clients for which groups are sought; five would give groups of two and three."""

MOST_GROUPS = 5

FAR = 6.0
"""Robust standard deviations below the median of mean cosines from which a client opposes the others."""


@dataclass(frozen=True)
class Groups:
    """Groups in the cosines of a round's clients.

    Attributes:
        groups: positions of clients, in the order of their first ones; one group: all are alike.
        opposed: positions of clients that oppose the others.
        silhouette: silhouette of the groups, -1 to 1; 0 for one group.
    """

    groups: tuple[tuple[int, ...], ...]
    opposed: tuple[int, ...]
    silhouette: float

    def give_advice(self, clients: tuple[int, ...]) -> list[str]:
        """Return advice in plain words; empty if no problem is found. `clients` are ids by position."""
        advice = []
        if self.opposed:
            names = ", ".join(str(clients[k]) for k in self.opposed[:10])
            advice.append(
                f"client {names} pulls against all others: look at its labels, or use a robust strategy "
                "(--strategy median, trimmed_mean)"
            )
        if len(self.groups) > 1:
            sizes = ", ".join(str(len(group)) for group in self.groups)
            advice.append(
                f"clients fall into {len(self.groups)} groups (of {sizes}) that pull in different directions: one "
                "model may serve none of them well; try a model for each client (--strategy ditto, fedsa_lora)"
            )
        return advice


def find_groups(cosines: NDArray[np.float64]) -> Groups:
    """Find the groups in cosines (clients, clients)."""
    count = len(cosines)
    everyone = (tuple(range(count)),)
    if count < FEWEST:
        return Groups(everyone, (), 0.0)
    opposed = _find_opposed(cosines)
    rest = [k for k in range(count) if k not in opposed]
    labels, silhouette = _cut(1 - cosines[np.ix_(rest, rest)]) if len(rest) >= FEWEST else (None, 0.0)
    if labels is None or silhouette < CLEAR:
        return Groups((tuple(rest),), opposed, 0.0)
    groups = (tuple(rest[i] for i in np.flatnonzero(labels == label)) for label in np.unique(labels))
    return Groups(tuple(sorted(groups)), opposed, silhouette)


def _find_opposed(cosines: NDArray[np.float64]) -> tuple[int, ...]:
    """Return the clients with negative cosines with the others, if the others agree with each other."""
    count = len(cosines)
    means = (cosines.sum(1) - 1) / (count - 1)
    middle = float(np.median(means))
    spread = 1.4826 * float(np.median(np.abs(means - middle)))
    far = np.flatnonzero((means < 0) & (means < middle - FAR * max(spread, 1e-3)))
    return tuple(far.tolist()) if middle > 0 and len(far) < count / 4 else ()


def _cut(distances: NDArray[np.float64]) -> tuple[NDArray[np.int64] | None, float]:
    """Return the labels with the largest silhouette among groups of two or more members; None if there are none."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    distances = np.clip((distances + distances.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average")
    best, silhouette = None, -1.0
    for wanted in range(2, min(MOST_GROUPS, len(distances) // 2) + 1):
        labels = fcluster(tree, wanted, "maxclust")
        if len(np.unique(labels)) != wanted or np.unique(labels, return_counts=True)[1].min() < 2:
            continue
        score = float(silhouette_score(distances, labels, metric="precomputed"))
        if score > silhouette:
            best, silhouette = labels.astype(np.int64), score
    return best, silhouette


def place_in_plane(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Place each client in the plane, (clients, 2), by classical scaling (Torgerson, 1952) of their updates' angles.

    Half of a squared distance stands for 1 - cosine. The largest entry of each axis is positive.
    """
    count = len(cosines)
    centering = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(centering @ cosines @ centering)
    places = vectors[:, ::-1][:, :2] * np.sqrt(np.clip(values[::-1][:2], 0, None))
    signs = np.sign(places[np.abs(places).argmax(0), np.arange(places.shape[1])])
    return np.asarray(places * np.where(signs == 0, 1, signs))

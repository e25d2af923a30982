"""Groups among clients, and clients that pull against the others, from the cosines of their updates; and what to do.

Clients whose data come from one source have about the same cosine with everybody. Groups show as blocks: average
linkage on 1 - cosine is cut where the silhouette (Rousseeuw, 1987) is largest, and counts where that is at least
`CLEAR`. What is said was right on made cohorts (`tests/unit/trust/test_groups.py`), which real ones may be unlike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLEAR = 0.25
"""Silhouette from which on groups are spoken of: of 50 made cohorts of each kind (seeds 0 to 49) iid ones stayed below
0.22, those of groups above 0.28."""

FEWEST = 6
"""Clients below which nothing is said: of five, two groups are two and three."""

MOST_GROUPS = 5

FAR = 6.0
"""Deviations (robust ones, from the median) below the others' mean cosine from which a client stands against them."""


@dataclass(frozen=True)
class Groups:
    """What the cosines of a round's clients say.

    Attributes:
        groups: positions of clients, in the order of their first ones; one group: all are alike.
        opposed: positions of clients that pull against the others.
        silhouette: of the groups, -1 to 1; 0 for one group.
    """

    groups: tuple[tuple[int, ...], ...]
    opposed: tuple[int, ...]
    silhouette: float

    def give_advice(self, clients: tuple[int, ...]) -> list[str]:
        """In plain words; empty: nothing is known to be wrong. `clients`: ids by position."""
        said = []
        if self.opposed:
            names = ", ".join(str(clients[k]) for k in self.opposed[:10])
            said.append(
                f"client {names} pulls against all others: look at its labels, or take a robust rule "
                "(--strategy median, trimmed_mean)"
            )
        if len(self.groups) > 1:
            sizes = ", ".join(str(len(group)) for group in self.groups)
            said.append(
                f"clients fall into {len(self.groups)} groups (of {sizes}) that pull in different directions: one "
                "model may serve none of them well; try a model for each client (--strategy ditto, fedsa_lora)"
            )
        return said


def find_groups(cosines: NDArray[np.float64]) -> Groups:
    """The groups in cosines (clients, clients)."""
    count = len(cosines)
    everyone = (tuple(range(count)),)
    if count < FEWEST:
        return Groups(everyone, (), 0.0)
    opposed = _find_opposed(cosines)
    rest = [k for k in range(count) if k not in opposed]
    labels, silhouette = _cut(1 - cosines[np.ix_(rest, rest)]) if len(rest) >= FEWEST else (None, 0.0)
    if labels is None or silhouette < CLEAR:
        return Groups((tuple(rest),), opposed, 0.0)
    found = (tuple(rest[i] for i in np.flatnonzero(labels == label)) for label in np.unique(labels))
    return Groups(tuple(sorted(found)), opposed, silhouette)


def _find_opposed(cosines: NDArray[np.float64]) -> tuple[int, ...]:
    """Clients whose cosines with the others are negative, where the others' with each other are positive."""
    count = len(cosines)
    means = (cosines.sum(1) - 1) / (count - 1)
    middle = float(np.median(means))
    spread = 1.4826 * float(np.median(np.abs(means - middle)))
    far = np.flatnonzero((means < 0) & (means < middle - FAR * max(spread, 1e-3)))
    return tuple(far.tolist()) if middle > 0 and len(far) < count / 4 else ()


def _cut(distances: NDArray[np.float64]) -> tuple[NDArray[np.int64] | None, float]:
    """The labels with the largest silhouette, of groups that have two members or more; None: there are none."""
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
        found = float(silhouette_score(distances, labels, metric="precomputed"))
        if found > silhouette:
            best, silhouette = labels.astype(np.int64), found
    return best, silhouette


def place_in_plane(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """A place in the plane for each client, (clients, 2): classical scaling (Torgerson, 1952) of their updates' angles.

    A picture of 1 - cosine as half a squared distance; signs are such that each axis' largest entry is positive.
    """
    count = len(cosines)
    centred = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(centred @ cosines @ centred)
    places = vectors[:, ::-1][:, :2] * np.sqrt(np.clip(values[::-1][:2], 0, None))
    signs = np.sign(places[np.abs(places).argmax(0), np.arange(places.shape[1])])
    return np.asarray(places * np.where(signs == 0, 1, signs))

"""The number of colluding clients that a secure sum tolerates, if the server sends different messages to clients.

Let c clients of a sum collude with the server. Every honest client accepts at most k neighbors, and shares two secrets
among them: the seed of its own mask, and the key of its pairwise masks. Any t shares give a secret. An honest client

    - signs one set of survivors, and names itself in it;
    - releases shares only if t of its neighbors have signed the same set;
    - releases, of each neighbor, the seed's share if the set names that neighbor, and else the key's share.

Colluding clients sign every set and hold c shares of both secrets. To read the vector of client v, the server needs the
seed of v and every mask that v shares with an honest client. Each such mask follows from the key of either end.

    Key of v:           t - c honest neighbors of v release its seed, and t - c others release its key.
    Key of a neighbor:  v has heard at least t - c honest neighbors, and at least t - c release its seed. If these two
                        groups share no client, v has 2 (t - c) honest neighbors. If they share the client r, then t - c
                        honest neighbors of r have signed a set that names r, and t - c others release the key of r.

In each case some honest client has 2 (t - c) honest neighbors, so 2 (t - c) <= k - c. Therefore nothing is read if

    c < 2 t - k.

The bound is exact if the federation has an honest client that is not a neighbor of v: it signs with the second group,
which then has the t signatures that it needs. A client cannot rule that out. It sees only its neighbors, and a server
can announce fewer clients than it asks. (If all clients are neighbors, one more colluding client is harmless.)

With c >= t the colluding clients alone hold enough shares. With c = t - 1 at least two honest clients remain in
every sum. So a sum tolerates min(2 t - k, t) - 1 colluding clients.
"""

from __future__ import annotations

import math

from fedpeft.privacy.secure_sum.neighbours import Terms


def count_tolerated(terms: Terms) -> int:
    """Return how many colluding clients a sum on these terms tolerates."""
    return min(2 * terms.needed_shares - terms.neighbor_count, terms.needed_shares) - 1


def explain_excess(terms: Terms, clients: int, collude: float) -> str:
    """Return a clause if the assumed share of colluding clients can read a client; else an empty text.

    Args:
        terms: the terms of the sum.
        clients: the number of clients that the sum asks.
        collude: the assumed share of them that colludes with the server, 0 to 1.
    """
    colluding, tolerated = math.floor(collude * clients), count_tolerated(terms)
    if colluding <= tolerated:
        return ""
    return (
        f"collude={collude:g} assumes {colluding} colluding clients in a secure sum of {clients}, which tolerates "
        f"{tolerated} ({terms.needed_shares} of {terms.neighbor_count} neighbors give a secret), so they could read "
        "single clients"
    )

"""Sums under masks: the server learns the sum of a round's updates, and no update (Bell et al., CCS 2020, SecAgg+).

Each client adds to its integers one mask for each neighbor, which it shares with that neighbor, and one of its own. In
the sum shared masks cancel. Shares of the keys, which neighbors give, remove the rest: the client's own mask if its
vector has arrived, or its shared masks if it has dropped out, never both. A round takes five steps. A client that fails
in one of them has dropped out. Below the threshold the round is void, and the model stays as it is.

Real clients sign with their certificates, accept keys from clients in their pinned roster, and take part in one sum per
round (`fedpeft.clients.masking`). A server that is killed in a round continues its sum (`fedpeft.rounds.sum_journal`).
Weights, losses and numbers of examples are summed in the same way.

A secure sum hides single updates, not what their sum reveals: for that, noise is needed. Nobody can detect a client
that lies, since its norm is hidden, too; rules that look at single updates are refused. Strategies that add up updates
work: `fedpeft describe strategy` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.privacy.secure_sum.sum import SecureSum


@dataclass(frozen=True)
class Masked(SecureSum):
    """Sums under masks: the server learns no single update."""


part = Masked

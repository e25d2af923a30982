"""Sums under masks: the server learns the sum of a round's updates, and no update (Bell et al., CCS 2020, SecAgg+).

Each client adds to its integers one mask that it shares with each neighbour, and one of its own. In the sum shared
masks cancel; the rest is taken off with shares of the keys, of which neighbours give one for each client: of its own
mask if its vector has arrived, of the shared ones if it has dropped out, never both. A round takes five steps; whoever
fails in one has dropped out, and below the threshold the round is void: the model stays as it is.

Real clients sign with their certificates, take keys of those in their pinned roster, and take part in one sum a round
(`fedpeft.clients.masking`); a server that is killed in a round goes on with its sum (`fedpeft.rounds.sum_journal`).

Weights, losses and rows are summed in the same way. It hides single updates, not what their sum tells: for that, noise
is needed. A client that lies can't be found out, since its norm is hidden, too; rules that look at single updates are
refused. Strategies that add updates up are right: `python -m fedpeft.describe strategy` says which.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.privacy.secure_sum.sum import SecureSum


@dataclass(frozen=True)
class Masked(SecureSum):
    """Sums under masks: the server learns no single update."""


part = Masked

"""FedALT: each client's own adapter beside the frozen mean of all others (arXiv 2503.11880).

    client k:   rest_k = (1 / (N - 1)) sum_{j != k} own_j;   trains own_k, its gate and its head from where it left them

The rule is for --peft row_lora, whose gate mixes the two adapters at each token. A client does not start from a mean,
which would mix the others' knowledge into the adapter that it trains. Written from a description of the paper.

One state serves all clients. The server holds S = (1 / N) sum_j own_j over all N clients, with the common start for
clients that were never drawn. A client subtracts its own share: rest_k = (N S - own_k) / (N - 1). It hands in the
change of own_k, and S <- S + (1 / N) sum of the cohort's changes. So S stays that mean, whoever takes part, and all
clients count alike. Half of the numbers travel. The adapter own, gate and head stay with the client, which is evaluated
with them. A client that never took part is evaluated with the start and the others' mean. The run's adapter is S beside
an untrained own.

With a lossy codec, S is the mean of the decoded changes, while clients subtract what they trained.

Use it with `row_lora` if clients differ so much that a common start would hurt them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.aggregation.update import Fold, Update
from fedpeft.errors import ConfigError
from fedpeft.parts import format_part, setting
from fedpeft.peft.adapter import AdapterShape, Layout, State

PAIRS = {".rest_A.weight": ".own_A.weight", ".rest_B.weight": ".own_B.weight"}
"""Ending of a mean's name -> ending of the name of the client's own tensor."""


@dataclass(frozen=True)
class FedALT(LinearStrategy):
    """The mean of adapters that stay with their clients."""

    clients: int = setting(0, "number of all clients; 0: that of the run", low=0)

    needs_lora: ClassVar[bool] = False
    arrives_whole: ClassVar[bool] = False

    def set_client_count(self, clients: int) -> Self:
        """Return the rule for a run with so many clients.

        Raises:
            ConfigError: `clients` names another number.
        """
        if self.clients not in (0, clients):
            raise ConfigError(
                f"FP1294 {format_part(self)} names {self.clients} clients, and the run has {clients}; leave "
                "clients= out"
            )
        return replace(self, clients=clients)

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse other adapters, weights by number of examples, and a single client.

        Raises:
            ConfigError: names the fault and the remedy.
        """
        super().check(layout, forms)
        if not _map_means(layout):
            raise ConfigError("FP1485 fedalt trains an adapter beside that of all other clients; use --peft row_lora")
        if self.weighting == "rows":
            raise ConfigError("FP1486 fedalt gives all clients the same weight; leave weighting out")
        if self.clients == 1:
            raise ConfigError("FP1487 fedalt needs at least 2 clients: one alone has no others")

    def start(self, state: State, layout: Layout, seed: int) -> State:
        """Return the start with the mean of the clients' adapters, which are equal at first."""
        return state | {rest: state[own].clone() for rest, own in _map_means(layout).items()}

    def list_private(self, layout: Layout) -> frozenset[str]:
        """Return all names but those of the mean."""
        return frozenset(layout.names) - _map_means(layout).keys()

    def list_frozen(self, layout: Layout) -> frozenset[str]:
        """Return the names of the others' mean."""
        return frozenset(_map_means(layout))

    def prepare_start(self, received: State, layout: Layout) -> State:
        """Return the state with the others' mean, (N S - own) / (N - 1)."""
        n = self.clients
        means = {rest: (n * received[rest] - received[own]) / (n - 1) for rest, own in _map_means(layout).items()}
        return received | means

    def select_update(self, delta: State, received: State, trained: State, layout: Layout) -> State:
        """Return the change of the client's own adapter, under the mean's names."""
        return {rest: trained[own] - received[own] for rest, own in _map_means(layout).items()}

    def fold(self, total: Fold, update: Update, state: State, layout: Layout) -> None:
        """Add the client's change with weight 1."""
        total.add({name: update.delta[name] for name in _map_means(layout)}, 1.0)

    def pseudo_gradient(self, total: Fold, layout: Layout) -> State:
        """Return the sum of the cohort's changes over the number of all clients."""
        share = total.weight / (self.clients or total.weight)
        return {name: tensor * share for name, tensor in total.mean().items()}


def _map_means(layout: Layout) -> dict[str, str]:
    """Map the name of each mean to the name of the client's own tensor."""
    found = {}
    for name in layout.names:
        for rest, own in PAIRS.items():
            if name.endswith(rest):
                found[name] = name.removesuffix(rest) + own
    return found


part = FedALT

"""FedLEASE: clusters of clients with an expert each, which all mix (Wang et al., NeurIPS 2025, arXiv 2509.15087).

    warm-up:  client i trains alone, from the common start
    clusters: d(i, j) = mean over layers of 1 - cos(B_i, B_j); average linkage, cut at the number M in 2..M_max that has
              the largest silhouette
    then:     expert, router and head of a cluster start as its members' mean, and client k of cluster c trains those:
              x_c <- x_c + sum_{k in c} p_k delta_k / sum_{k in c} p_k;   the other experts are sent, and stand still

The rule is for --peft expert_lora, whose `experts` is M_max. The server sends every client its cluster's expert as its
own one, and the other clusters' experts beside it; unused slots are shut. A client learns neither its cluster nor the
cluster's other members. Clients are evaluated one by one, with what they receive. The run's adapter is that of the
largest cluster.

In the first `warmup` rounds each drawn client trains alone. If drawn again, it continues from its own state. A client
that is first drawn later starts from the common start and joins the cluster with the smallest mean d to its founders.
Its update of that round enters no mean.

Deviations: the paper never tests M = 1. Here all clients are one cluster, which is FedIT, if the best silhouette is
below `clear`. Weights are p_k, also in the first means (the paper's are equal: weighting=uniform). In the paper all
clients take part in the warm-up and in each round. Heads belong to clusters, since a run has one task. Written from
descriptions of the paper, without its code. During the warm-up the server holds each client's own state.

Use it with `expert_lora` if clients fall into a few groups that are not known in advance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from fedpeft.aggregation.grouped_rules import GroupedRound, GroupedStrategy
from fedpeft.aggregation.update import Fold, Update
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.parts import setting
from fedpeft.peft.adapter import AdapterShape, Layout, State
from fedpeft.peft.methods.expert_lora import SHUT, number_slots

CLUSTERS = "clusters"
"""Name of the clients' clusters: (n, 2), client and cluster, from 0, in the order of clients."""


@dataclass(frozen=True)
class FedLEASE(GroupedStrategy):
    """Clusters of clients after a warm-up, each with an expert, which all clients mix."""

    warmup: int = setting(2, "rounds in which each client trains alone, before clusters are formed", low=1)
    clear: float = setting(
        0.25, "silhouette below which all are one cluster; -1: the paper's, never", low=-1.0, high=1.0
    )

    needs_lora: ClassVar[bool] = False

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse other adapters.

        Raises:
            ConfigError: names the PEFT method to use.
        """
        super().check(layout, forms)
        if not _find_names(layout, ".others_B.weight"):
            raise ConfigError("FP1488 fedlease mixes the experts of all clusters; use --peft expert_lora")

    def list_trained(self, layout: Layout, round_number: int) -> frozenset[str]:
        """Return all names but those of the other clusters' experts."""
        others = {*_find_names(layout, ".others_A.weight"), *_find_names(layout, ".others_B.weight")}
        return frozenset(layout.names) - others

    def prepare_start(self, received: State, layout: Layout) -> State:
        """Return what was sent, if the open slots fit a number of experts and are the same in all layers.

        Raises:
            PayloadError: they do not fit.
        """
        found = {tuple((received[name] < SHUT / 2).tolist()) for name in _find_names(layout, ".bias.weight")}
        room = (len(next(iter(found))) + 1) // 2
        if len(found) > 1 or found - {tuple((number_slots(room) >= m).tolist()) for m in range(1, room + 1)}:
            raise PayloadError(
                f"FP6175 the server opens a set of expert slots that fits no number of experts from 1 to {room}"
            )
        return received

    def find_group(self, client: int, learned: State) -> str:
        """Return the name of the client's cluster, of the client alone, or of all newcomers."""
        if CLUSTERS in learned:
            where = dict(learned[CLUSTERS].tolist())
            return f"cluster/{where[client]}" if client in where else "newcomers"
        return f"alone/{client}" if f"alone/{client}/weight" in learned else "newcomers"

    def get_group_state(self, group: str, state: State, learned: State, layout: Layout) -> State:
        """Return the group's expert, router and head, the other clusters' experts, and a slot for each expert."""
        kind, _, number = group.partition("/")
        if kind != "cluster":
            own = _select_section(learned, "start" if kind == "newcomers" else group, layout) or state
            return _shut(state | own, layout, 1)
        experts = [_select_section(learned, f"cluster/{c}", layout) for c in range(_count(learned))]
        sent = state | experts.pop(int(number))
        for name in _find_names(layout, ".others_A.weight"):
            sent[name] = _join_factors([e[name.replace(".others_A.", ".own_A.")] for e in experts], state[name], 0)
        for name in _find_names(layout, ".others_B.weight"):
            sent[name] = _join_factors([e[name.replace(".others_B.", ".own_B.")] for e in experts], state[name], 1)
        return _shut(sent, layout, len(experts) + 1)

    def regroup(self, received: GroupedRound) -> tuple[State, State]:
        """Keep what clients learn alone, form clusters of it, or take a step in each cluster."""
        learned = dict(received.learned)
        if CLUSTERS in learned:
            _step_clusters(received, learned)
        else:
            for update in received.updates():
                learned |= _add_label(f"alone/{update.client}", _get_trained(update))
                learned[f"alone/{update.client}/weight"] = torch.tensor(update.weight, dtype=torch.float64)
            if not learned:
                raise ConfigError("FP1489 fedlease needs at least one update")
            if received.round >= self.warmup:
                learned = self._form_clusters(received, learned)
        state = received.state
        if CLUSTERS in learned:
            state = self.get_group_state("cluster/0", state, learned, received.layout)
        return state, learned

    def _form_clusters(self, received: GroupedRound, learned: State) -> State:
        """Form clusters of the clients' own states, and return the tensors to keep."""
        layout, trained = received.layout, self.list_trained(received.layout, received.round)
        clients = sorted(int(name.split("/")[1]) for name in learned if name.endswith("/weight"))
        states = {k: _select_section(learned, f"alone/{k}", layout) for k in clients}
        facing = [_compute_directions(states[k], layout) for k in clients]
        labels = cluster_clients(compute_distances(facing), _count_experts(layout), self.clear)
        kept = _add_label("start", {name: received.state[name].clone() for name in received.state if name in trained})
        kept[CLUSTERS] = torch.tensor(list(zip(clients, labels, strict=True)), dtype=torch.int64)
        for c in range(max(labels) + 1):
            members = [i for i, label in enumerate(labels) if label == c]
            total = Fold()
            for i in members:
                total.add(states[clients[i]], float(learned[f"alone/{clients[i]}/weight"]))
            untrained = {
                name: received.state[name].clone() for name in _find_names(layout, ".bias.weight")
            }  # slots open
            kept |= _add_label(f"cluster/{c}", total.mean() | untrained)
            means = {name: torch.stack([facing[i][name] for i in members]).mean(0) for name in facing[0]}
            kept |= _add_label(f"facing/{c}", means)
        return kept


def _step_clusters(received: GroupedRound, learned: State) -> None:
    """Add the mean of its updates to each cluster, and assign newcomers to clusters."""
    layout, where = received.layout, dict(learned[CLUSTERS].tolist())
    totals: dict[int, Fold] = {}
    for update in received.updates():
        if update.client in where:
            totals.setdefault(where[update.client], Fold()).add(update.delta, update.weight)
        else:
            facing = _compute_directions(_get_trained(update), layout)
            means = [_select_section(learned, f"facing/{c}", layout) for c in range(_count(learned))]
            where[update.client] = int(np.argmin([_compute_distance(facing, mean) for mean in means]))
    if not totals and len(where) == len(learned[CLUSTERS]):
        raise ConfigError("FP1489 fedlease needs at least one update")
    for c, total in totals.items():
        for name, step in total.mean().items():
            learned[f"cluster/{c}/{name}"] = learned[f"cluster/{c}/{name}"] + step
    learned[CLUSTERS] = torch.tensor(sorted(where.items()), dtype=torch.int64)


def compute_distances(facing: list[State]) -> NDArray[np.float64]:
    """Compute d(i, j), (n, n), from each client's B as unit vectors by layer; 1 for a client with B = 0."""
    found = np.ones((len(facing), len(facing)))
    for i, one in enumerate(facing):
        found[i] = [_compute_distance(one, other) for other in facing]
        found[i, i] = 0.0
    return (found + found.T) / 2


def cluster_clients(distance: NDArray[np.float64], most: int, clear: float) -> list[int]:
    """Return the cluster of each client, from 0: the largest cluster first, then by their first members.

    Args:
        distance: (n, n), symmetric.
        most: largest number of clusters.
        clear: least silhouette of the best cut; below it, all clients are one cluster.
    """
    from sklearn.metrics import silhouette_score  # the server's: clients don't have scikit-learn

    count = len(distance)
    best, labels = -np.inf, np.ones(count, dtype=int)
    if count > 2:
        tree = linkage(squareform(distance, checks=False), "average")
        for number in range(2, min(most, count - 1) + 1):
            cut = fcluster(tree, number, "maxclust")
            if len(set(cut)) == number and (score := silhouette_score(distance, cut, metric="precomputed")) > best:
                best, labels = score, cut
    if best < clear:
        return [0] * count
    found = list(labels)
    order = sorted(set(found), key=lambda label: (-found.count(label), found.index(label)))
    return [order.index(label) for label in found]


def _compute_distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Return the mean over layers of 1 minus the inner product."""
    return float(np.mean([1 - float(one[name] @ other[name]) for name in one]))


def _compute_directions(state: State, layout: Layout) -> State:
    """Return each layer's B as a vector of length 1, fp64; 0 if B is 0."""
    flat = {name: state[name].double().flatten() for name in _find_names(layout, ".own_B.weight")}
    return {name: vector / vector.norm().clamp(min=1e-300) for name, vector in flat.items()}


def _get_trained(update: Update) -> State:
    return {name: update.get_trained(name) for name in update.delta}


def _shut(state: State, layout: Layout, experts: int) -> State:
    """Shut the slots that so many experts do not need; the others do not change."""
    shut = number_slots(_count_experts(layout)) >= experts
    return state | {name: state[name].masked_fill(shut, SHUT) for name in _find_names(layout, ".bias.weight")}


def _join_factors(parts: list[torch.Tensor], like: torch.Tensor, axis: int) -> torch.Tensor:
    """Join factors side by side, with 0 for missing experts."""
    joined = torch.zeros_like(like)
    if parts:
        whole = torch.cat(parts, axis)
        joined.narrow(axis, 0, whole.shape[axis]).copy_(whole)
    return joined


def _count_experts(layout: Layout) -> int:
    """Return M_max."""
    return (layout.shapes[_find_names(layout, ".bias.weight")[0]][0] + 1) // 2


def _count(learned: State) -> int:
    """Return M."""
    return int(learned[CLUSTERS][:, 1].max()) + 1


def _find_names(layout: Layout, ending: str) -> list[str]:
    return [name for name in layout.names if name.endswith(ending)]


def _add_label(label: str, state: State) -> State:
    return {f"{label}/{name}": tensor for name, tensor in state.items()}


def _select_section(learned: State, label: str, layout: Layout) -> State:
    """Return the layout's tensors that are kept under a label."""
    return {name: learned[f"{label}/{name}"] for name in layout.names if f"{label}/{name}" in learned}


part = FedLEASE

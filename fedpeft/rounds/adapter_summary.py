"""What a run's adapter has learned, and where its clients disagreed: the adapter's part of summary.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedpeft.models.layers import get_innermost, unwrap
from fedpeft.peft.abilities import ChangesWeights
from fedpeft.peft.adapter import State
from fedpeft.reporting.observer import Metrics
from fedpeft.rounds.progress import ServerState
from fedpeft.trust.disagreement import restore_cosines, round_value
from fedpeft.trust.groups import find_groups, place_in_plane
from fedpeft.trust.spectra import LARGEST, compute_spectra, decompose, remove_leading, shrink_equally
from fedpeft.wiring.setup import Setup

CAUSAL = ("as it is", "without the leading direction", "shrunk to the same norm")
"""The variants that the causal check compares."""


def has_products(setup: Setup) -> bool:
    """Return whether a layer's weight changes by the product of two adapter factors, and by nothing else."""
    plain = not isinstance(setup.method, ChangesWeights)
    return bool(setup.layout.pairs) and setup.layout.form is not None and plain


def summarize_run(setup: Setup, progress: ServerState, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return spectra of the kept state, by module, and the clients' part of the last line of disagreement.jsonl."""
    found: dict[str, Any] = {}
    if has_products(setup):
        made = compute_spectra(decompose(progress.result[0], setup.layout), load_base_weights(setup))
        found["modules"] = {module: spectrum.to_dict() for module, spectrum in made.items()}
    return found | (summarize_clients(lines[-1]) if lines else {})


def summarize_clients(line: Mapping[str, Any]) -> dict[str, Any]:
    """Summarize the clients of one round: shares, groups, places in the plane, and advice."""
    cosines, clients = restore_cosines(line).numpy(), tuple(line["clients"])
    groups = find_groups(cosines)
    return {
        "round": line["round"],
        "clients": list(clients),
        "cancelled": line["cancelled"],
        "conflict": line["conflict"],
        "cancelled_by_module": line["cancelled_by_module"],
        "agreement": line["agreement"],
        "overlap": line["overlap"],
        "places": [[round_value(x) for x in place] for place in place_in_plane(cosines).tolist()],
        "groups": [[clients[k] for k in group] for group in groups.groups],
        "opposed": [clients[k] for k in groups.opposed],
        "advice": groups.give_advice(clients),
    }


def load_base_weights(setup: Setup) -> dict[str, Any]:
    """Return W0 of the adapted layers that are small enough, in fp32, by module."""
    if setup.method.base_precision:
        return {}
    model = setup.model()
    plain = unwrap(model.base)
    wanted = [p.module for p in setup.layout.pairs if p.out_features * p.in_features <= LARGEST]
    layers: dict[str, Any] = {module: get_innermost(plain.get_submodule(module)) for module in wanted}
    return {module: layer.weight.detach().float() for module, layer in layers.items() if hasattr(layer, "weight")}


def measure_causal_effect(
    setup: Setup, state: State, evaluate: Callable[[State], Metrics]
) -> dict[str, dict[str, float]]:
    """Return validation loss and accuracy of the state and of its two edits.

    The edits remove each layer's leading direction, or shrink the layer to the same norm.
    """
    states = (state, remove_leading(state, setup.layout), shrink_equally(state, setup.layout))
    found = {name: evaluate(edited) for name, edited in zip(CAUSAL, states, strict=True)}
    return {name: {"loss": metrics.loss, "accuracy": metrics.accuracy} for name, metrics in found.items()}

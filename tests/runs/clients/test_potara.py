"""Potara in whole runs: what clients keep, what they are scored with, what is exported, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from fedpeft.clients.personal import SHARE, compose_model
from fedpeft.clients.store import select_section
from safetensors.torch import load_file

from fedpeft.commands.export import main as export
from fedpeft.simulate import main
from tests.kept_states import kept
from tests.refusals import refuses
from tests.runs.simulation.test_run_strategies import flags, settings, trained


def test_both_models_are_those_of_ditto_without_a_pull_and_each_client_keeps_a_share(tmp_path):
    runs = {}
    for rule in ("potara(rows=4)", "ditto(strength=0)"):
        *_, progress = trained(tmp_path / rule, **settings(rule, dtype="fp64"))
        runs[rule] = progress.adapter
    mixed = runs["potara(rows=4)"]
    assert all(torch.equal(mixed[n], runs["ditto(strength=0)"][n]) for n in mixed)
    found, alone = kept(tmp_path / "potara(rows=4)" / "clients"), kept(tmp_path / "ditto(strength=0)" / "clients")
    assert found
    for client, states in found.items():
        last, plain = states[max(states)], alone[client][max(alone[client])]
        assert 0 < float(last[SHARE]) < 1
        own, other = select_section(last, "personal"), select_section(plain, "personal")
        assert all(torch.equal(own[n], other[n]) for n in own), "it is trained alone"


def test_clients_are_scored_and_exported_with_their_mix(tmp_path):
    folder = tmp_path / "run"
    assert main(flags(folder, **settings("potara(rows=4)", dtype="fp32"))) == 0
    assert json.loads((folder / "summary.json").read_text())["worst_accuracy"] is not None
    client, states = next(iter(kept(folder / "clients").items()))
    assert export([str(folder), "--client", str(client), "--output", str(tmp_path / "own")]) == 0
    head = load_file(tmp_path / "own" / "adapter" / "head.safetensors")["head.weight"]
    shared = load_file(next((folder / "checkpoint").rglob("*.safetensors")))
    shared = select_section(shared, "adapter")
    mixed = compose_model(shared, states[max(states)])["head.weight"]
    assert torch.allclose(head, mixed.float(), atol=1e-6)
    assert not torch.allclose(head, shared["head.weight"].float(), atol=1e-6)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"privacy": "dp_sgd(epsilon=8, raw_metrics=True)"}, ("FP7109", "potara")),
        ({"privacy": "secure_sum"}, ("FP7100", "potara")),
        ({"privacy": "user_dp(epsilon=8)"}, ("FP7110", "potara")),
        ({"ranks": "2*3,4*3"}, ("FP1024", "Potara")),
    ],
)
def test_what_it_does_not_cover_is_refused(given, words, tmp_path):
    with refuses(*words):
        trained(tmp_path, **settings("potara", **given))

"""Ditto: a client's own model beside the global one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fedpeft.clients.personal import create_personal_job
from fedpeft.clients.store import select_section
from safetensors.torch import load_file

from fedpeft.commands.export import main as export
from fedpeft.conformance.peft_cases import Case
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulate import main
from tests.kept_states import kept
from tests.refusals import refuses
from tests.runs.simulation.test_run_strategies import flags, settings, trained


@pytest.mark.fast
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_step_is_the_algorithm_s(strength, tiny):
    """The step is v <- v - eta (grad F(v) + lambda (v - w)), v != w; F's gradient comes from a step without a pull."""
    case = Case("lora(rank=4)", tiny)
    optimizer = "sgd(max_norm=0.0, head_rate=1.0)"
    job = case.jobs(rate=0.1, steps=1, optimizer=optimizer)[0]
    own = {name: t + 0.1 for name, t in job.received.items()}
    [plain] = case.sequential.train([replace(job, received=own)])
    [personal] = case.sequential.train([create_personal_job(job, own, strength)])
    [first] = case.sequential.train([create_personal_job(job, {}, strength)])
    [w] = case.sequential.train([job])
    assert torch.equal(first.state["head.weight"], w.state["head.weight"]), "it starts from w"
    for name, v in own.items():
        expected = plain.state[name] - 0.1 * strength * (v - job.received[name])
        assert torch.allclose(personal.state[name], expected, rtol=1e-12, atol=1e-13), name
    jobs = [create_personal_job(j, own, strength) for j in case.jobs(rate=0.1, optimizer=optimizer)]
    for one, other in zip(case.sequential.train(jobs), case.create_batched_executor().train(jobs), strict=True):
        assert all(torch.allclose(one.state[n], other.state[n], rtol=1e-9, atol=1e-12) for n in one.state)


def own_models(folder):
    """By client, its own model after its last round."""
    return {
        client: select_section(states[max(states)], "personal") for client, states in kept(folder / "clients").items()
    }


def distances(folder, progress):
    """By client, how far its own model is from the global one."""
    found = {}
    for client, own in own_models(folder).items():
        assert own.keys() == progress.adapter.keys()
        found[client] = sum(float((t - progress.adapter[n]).square().sum()) for n, t in own.items())
    return found


def test_the_global_model_is_as_without_and_a_stronger_pull_keeps_clients_nearer(tmp_path):
    given = {"dtype": "fp64", "rounds": 3, "cohort": "all", "optimizer": "sgd", "learning_rate": 0.1}
    runs = [trained(tmp_path / s, **settings(f"ditto(strength={s})", **given)) for s in ("0", "5")]
    (*_, weak), (*_, strong) = runs
    assert all(torch.equal(weak.adapter[n], strong.adapter[n]) for n in weak.adapter)
    far, near = distances(tmp_path / "0", weak), distances(tmp_path / "5", strong)
    assert far.keys() == near.keys()
    assert len(far) == 6
    assert sum(near.values()) < 0.9 * sum(far.values())


class StopError(Exception):
    pass


def test_a_resumed_run_ends_with_the_same_models(tmp_path, monkeypatch):
    given = settings("ditto", dtype="fp64", rounds=3)
    *_, whole = trained(tmp_path / "whole", **given)

    def stop(_self, result):
        if result.round == 2:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleObserver, "round_done", stop)
        with pytest.raises(StopError):
            trained(tmp_path / "cut", **given)
    *_, cut = trained(tmp_path / "cut", **given)
    assert all(torch.equal(whole.adapter[n], cut.adapter[n]) for n in whole.adapter)
    one, other = own_models(tmp_path / "whole"), own_models(tmp_path / "cut")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[client][n], other[client][n]) for client in one for n in one[client])


def test_clients_are_scored_one_by_one_and_a_client_s_adapter_is_its_own(tmp_path):
    folder = tmp_path / "run"
    assert main(flags(folder, **settings("ditto", dtype="fp32"))) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["worst_accuracy"] is not None
    assert 0 < summary["accuracy"] <= 1
    client, own = next(iter(own_models(folder).items()))
    assert export([str(folder), "--client", str(client), "--output", str(tmp_path / "own")]) == 0
    head = load_file(tmp_path / "own" / "adapter" / "head.safetensors")
    assert torch.equal(head["head.weight"], own["head.weight"].float())
    assert not torch.equal(head["head.weight"], load_file(folder / "adapter" / "head.safetensors")["head.weight"])


@pytest.mark.fast
@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ("dp_sgd(epsilon=8, raw_metrics=True)", ("FP7109",)),
        ("secure_sum", ("FP7100", "ditto")),
        ("user_dp(epsilon=8)", ("FP7110",)),
    ],
)
def test_what_does_not_cover_two_models_is_refused(privacy, words, tmp_path):
    with refuses(*words):
        trained(tmp_path, **settings("ditto", privacy=privacy))

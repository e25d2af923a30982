"""Every PEFT method through the main job: it resumes to the identical state, and is scored from its files."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fedpeft.parts.families import PEFT_METHODS
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.final_score import save
from fedpeft.reporting.records import Records
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.setup import count_adapted_entries
from tests.refusals import has_error

TINY = {"dataset": "tiny", "tokens": 16, "clients": 4, "cohort": 2, "rounds": 3, "workers": 1, "seed": 3,
        "head": "zero", "local_work": "steps(1)", "learning_rate": 3e-3, "dtype": "fp32",
        "measure": "validation(every=3)"}  # fmt: skip
RULE = {"vera": "rolora", "adalora": "flexlora", "lora_gram": "florg"}
ELSEWHERE = {"adapter_fusion", "whitened_probe"}
"""Methods that need finished adapters or images; they have tests of their own."""
SPECS = [
    *sorted({*PEFT_METHODS.names} - ELSEWHERE),
    "lora(rank=4) + bitfit",
    "prefix(length=10) + bottleneck(dim=32)",
]


class StopError(Exception):
    pass


def trained(folder, **given):
    simulation = Simulation(RunConfig(**given), folder, ConsoleObserver(Console(quiet=True)))
    folder.mkdir(parents=True, exist_ok=True)
    return simulation, simulation.train(simulation.server(Records(folder)))


QUICKER = ("adalora", "dora", "lora(rank=4) + bitfit")
"""One of each kind of state: factors on the server, an error that is recorded, several methods."""


@pytest.mark.parametrize(
    "spec", [pytest.param(s, marks=pytest.mark.slow if s in QUICKER else pytest.mark.long) for s in SPECS]
)
def test_it_resumes_to_the_identical_state_and_is_scored(spec, tmp_path, monkeypatch):
    given = {**TINY, "peft": spec, "strategy": RULE.get(spec, "fedit")}
    simulation, whole = trained(tmp_path / "whole", **given)

    def stop(_self, result):
        if result.round == 1:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleObserver, "round_done", stop)
        with pytest.raises(StopError):
            trained(tmp_path / "cut", **given)
    _, cut = trained(tmp_path / "cut", **given)
    assert whole.adapter.keys() == cut.adapter.keys()
    assert all(torch.equal(whole.adapter[n], cut.adapter[n]) for n in whole.adapter)
    save(simulation.setup, whole.adapter, tmp_path / "whole")
    assert 0 < simulation.scorer.score(tmp_path / "whole", "score").accuracy <= 1
    errors = [line["aggregation_error"] for line in Records(tmp_path / "whole").read("rounds.jsonl")]
    assert (errors[-1] is not None) == (
        simulation.setup.weight_changes is not None or bool(simulation.setup.layout.pairs)
    )


@pytest.mark.slow
def test_fusion_goes_on_from_two_finished_runs_and_may_stay_private(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        simulation, progress = trained(tmp_path / f"{seed}", **{**TINY, "peft": "bottleneck(dim=4)", "seed": seed})
        save(simulation.setup, progress.adapter, tmp_path / f"{seed}")
    spec = "adapter_fusion(runs=('1', '2'), width=6)"
    states = []
    for executor in ("batched", "sequential"):
        given = {**TINY, "peft": spec, "dtype": "fp64", "grid": f"cohort(executor={executor})"}
        simulation, progress = trained(tmp_path / executor, **given)
        states.append(progress.adapter)
    assert all(torch.allclose(states[0][n], states[1][n], rtol=1e-7, atol=1e-9) for n in states[0])
    save(simulation.setup, progress.adapter, tmp_path / "sequential")
    for seed in (1, 2):
        (tmp_path / f"{seed}").rename(tmp_path / f"gone {seed}")
    assert 0 < simulation.scorer.score(tmp_path / "sequential", "score").accuracy <= 1
    for seed in (1, 2):
        (tmp_path / f"gone {seed}").rename(tmp_path / f"{seed}")
    own = "fedper(private_layers=('query', 'key', 'value'))"
    simulation, progress = trained(tmp_path / "own", **{**TINY, "peft": spec, "strategy": own})
    start = simulation.setup.start
    assert all(torch.equal(progress.adapter[n], start[n]) != n.startswith("head.") for n in start)


@pytest.mark.slow
def test_prompts_are_weighed_on_validation_rows_when_they_are_scored(tmp_path):
    simulation, progress = trained(tmp_path / "run", **{**TINY, "peft": "prompt_ensemble(prompts=2, length=3)"})
    save(simulation.setup, progress.adapter, tmp_path / "run")
    file = tmp_path / "run" / "adapter" / "adapter.safetensors"
    assert "prompts.shares" not in load_file(file)
    assert 0 < simulation.scorer.score(tmp_path / "run", "score").accuracy <= 1
    assert float(load_file(file)["prompts.shares"].sum()) == pytest.approx(1)


def test_prompts_of_different_lengths_go_through_the_main_job(tmp_path):
    states = []
    for executor in ("batched", "sequential"):
        given = {**TINY, "dtype": "fp64", "strategy": "owned_mean", "ranks": "3*2,6*2", "cohort": "all"}
        given |= {"peft": "prompt_tuning", "grid": f"cohort(executor={executor})", "rounds": 1}
        simulation, progress = trained(tmp_path / executor, **given)
        states.append(progress.adapter)
        assert simulation.setup.layout.form.rank == 6
        assert simulation.workers.work.executor == executor
    assert all(torch.allclose(states[0][n], states[1][n], rtol=1e-7, atol=1e-9) for n in states[0])


def test_the_fallback_is_said_once_and_wrong_rules_are_one_sentence(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    words = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, "rounds": 1}.items()]
    assert main([*words, "--peft", "dora(rank=2)", "--output", str(tmp_path / "run")]) == 0
    assert "".join(capfd.readouterr()).count("dora has no batched form") == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"] > 0
    for peft, refused in {
        "vera": ("FP1332", "--strategy ffa_lora or flexlora or rolora"),
        "bitfit(layers=9)": ("FP4026", "layers=9", 3),
        "prompt_tuning + bitfit": ("FP1239", "prompt_tuning"),
        "bitfit + bitfit": ("FP1240", "bitfit"),
    }.items():
        assert main([*words, "--peft", peft, "--output", str(tmp_path / "other")]) == 2
        heard = "".join(capfd.readouterr())
        assert has_error(heard, *refused)
        assert "Traceback" not in heard


@pytest.mark.parametrize(
    ("spec", "strategy"), [("dora(rank=2, layers=2)", "fedit"), ("lora_sb(rank=2, layers=2)", "fedit")]
)
def test_the_frozen_part_is_reused_whether_or_not_a_method_has_a_batched_form(spec, strategy, tmp_path):
    states = []
    for executor in ("batched", "sequential"):
        given = {
            **TINY,
            "dtype": "fp64",
            "peft": spec,
            "strategy": strategy,
            "grid": f"cohort(executor={executor})",
            "head": "ridge",
        }
        simulation, progress = trained(tmp_path / executor, **given)
        states.append(progress.adapter)
        assert (simulation.workers.work.depth > 0) == (executor == "batched")
    assert all(torch.allclose(states[0][n], states[1][n], rtol=1e-9, atol=1e-11) for n in states[0])


def test_a_strategy_that_keeps_factors_private_runs_with_dora(tmp_path):
    _, progress = trained(tmp_path / "run", **{**TINY, "peft": "dora(rank=2)", "strategy": "fedsa_lora"})
    assert progress.round == TINY["rounds"]


def test_ranks_of_a_method_that_has_them_and_of_one_that_has_not(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    simulation, _ = trained(tmp_path / "sb", **{**TINY, "peft": "lora_sb(rank=4)", "ranks": "8*4", "rounds": 1})
    assert simulation.setup.layout.form.rank == 8
    words = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, "rounds": 1}.items()]
    for peft, rule, code in (("vera", "rolora", "FP1238"), ("lora + bitfit", "fedit", "FP1238")):
        given = [*words, "--ranks=4*4", "--peft", peft, "--strategy", rule, "--output", str(tmp_path / "no")]
        assert main(given) == 2
        assert has_error("".join(capfd.readouterr()), code)


@pytest.mark.fast
@pytest.mark.parametrize("spec", ["dora(rank=2)", "vera(rank=4)", "adalora(rank=2)"])
def test_the_error_is_not_measured_where_the_exact_aggregate_would_be_too_large(spec, tmp_path, monkeypatch):
    given = {**TINY, "peft": spec, "strategy": RULE.get(spec.partition("(")[0], "fedit")}
    config, observer = RunConfig(**given), ConsoleObserver(Console(quiet=True))
    whole = Simulation(config, tmp_path / "one", observer)
    assert whole.setup.weight_changes is not None
    monkeypatch.setattr(
        "fedpeft.wiring.setup.LARGEST_TARGET", count_adapted_entries(whole.setup.model(), whole.setup.layout) - 1
    )
    assert Simulation(config, tmp_path / "other", observer).setup.weight_changes is None

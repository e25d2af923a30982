"""Privacy in whole runs: refusals, what is claimed, what leaves a client, equality with plain runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedpeft.peft.methods.prompt_ensemble import SHARES
from fedpeft.peft.saved_adapter import OWN_TENSORS
from fedpeft.privacy.engine import LEDGER
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from fedpeft.study.results import read_run
from fedpeft.wiring.config import RunConfig
from tests.privacy.small_runs import QUIET, TINY, trained
from tests.refusals import refuses

SUMMED = "fedit, fedsvd, ffa_lora, flasc, fslora or rolora"
"""Strategies that add up clients' contributions with equal weights."""


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"privacy": "dp_sgd"}, ("FP7049", "dp_sgd", "epsilon", "noise_multiplier")),
        (
            {"privacy": "dp_sgd(epsilon=8)", "strategy": "fedit(weighting=rows)"},
            ("FP7104", "weighting=rows", "--privacy"),
        ),
        ({"privacy": "dp_sgd(epsilon=8)", "head": "ridge"}, ("FP7105", "head=ridge", "dp_sgd", "--head zero")),
        (
            {"privacy": "dp_sgd(epsilon=8)", "drift": "scaffold", "optimizer": "sgd(head_rate=1.0)"},
            ("FP7106", "scaffold", "--drift"),
        ),
        ({"privacy": "dp_sgd(epsilon=8, dp_delta=0.1)"}, ("FP7050", "dp_delta=0.1", "0.00543")),
        ({"privacy": "user_dp(epsilon=8, dp_delta=0.2)"}, ("FP7050", "dp_delta=0.2", "0.167")),
        ({"privacy": "user_dp(epsilon=8)", "strategy": "flexlora"}, ("FP7067", "flexlora", SUMMED)),
        ({"privacy": "user_dp(epsilon=8)", "strategy": "raflora"}, ("FP7067", "raflora", SUMMED)),
        ({"privacy": "user_dp(epsilon=8)", "strategy": "fedsa_lora"}, ("FP7110", "fedsa_lora", "raw_metrics=True")),
        (
            {"privacy": "user_dp(epsilon=8)", "codec": "by_rows | adaptive(bits=1) | rans"},
            ("FP7107", "--codec", "user_dp"),
        ),
        (
            {"privacy": "dp_sgd(epsilon=8)", "codec": "over_time | adaptive(bits=1) | rans"},
            ("FP7108", "over_time", "raw_metrics=True"),
        ),
        (
            {"privacy": "user_dp(epsilon=8, quantile=0.5, count_noise=0.01)"},
            ("FP7072", 0.439, "count_noise", 0.22, 0.01),
        ),
        (
            {"privacy": "dp_sgd(noise_multiplier=1, at_budget=sit_out)"},
            ("FP7038", "at_budget=sit_out", "dp_sgd", "epsilon"),
        ),
        ({"privacy": "dp_sdg(epsilon=8)"}, ("FP1231", "'dp_sdg'", "did you mean 'dp_sgd'")),
    ],
)
def test_unsound_settings_are_refused_in_a_sentence(tmp_path, given, says):
    with refuses(*says) as error:
        Simulation(RunConfig(**{**TINY, **given}), tmp_path / "run", ConsoleObserver(QUIET))
    assert "\n" not in str(error.value)


def test_no_raw_metric_leaves_a_client(tmp_path):
    for privacy, silent in (
        ("dp_sgd(noise_multiplier=1)", True),
        ("dp_sgd(noise_multiplier=1, raw_metrics=True)", False),
    ):
        folder = tmp_path / str(silent)
        trained(folder, privacy=privacy)
        lines = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
        rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        assert all((line["loss"] is None) == silent == (line["rows"] is None) for line in lines)
        assert all((line["train_loss"] is None) == silent for line in rounds)
        assert all(line["confidential"] for line in lines)


def test_the_reference_without_protection_is_a_plain_run_with_uniform_weights(tmp_path):
    """It trains as one, bit for bit, and reports as one; rules that go by what clients report may be used."""
    told, adapters = [], []
    for name, given in (("plain", {"strategy": "fedit(weighting=uniform)"}), ("reference", {"privacy": "none"})):
        adapters.append(trained(tmp_path / name, **given)[1].adapter)
        lines = [json.loads(line) for line in (tmp_path / name / "clients.jsonl").read_text().splitlines()]
        rounds = [json.loads(line) for line in (tmp_path / name / "rounds.jsonl").read_text().splitlines()]
        told.append(([(li["client"], li["rows"], li["loss"]) for li in lines], [r["train_loss"] for r in rounds]))
    assert told[0] == told[1]
    assert all(loss > 0 for loss in told[0][1])
    assert all(torch.equal(adapters[0][n], adapters[1][n]) for n in adapters[0])
    for given in ({"strategy": "fedsa_lora"}, {"codec": "over_time | adaptive(bits=1) | rans"}):
        _, progress = trained(tmp_path / next(iter(given)), privacy="none", **given)
        assert progress.round == 2


@pytest.mark.fast("one private run")
def test_the_summary_says_what_is_claimed(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["--" + k.replace("_", "-") + f"={v}" for k, v in TINY.items()]
    assert main([*words, "--privacy", "dp_sgd(epsilon=8, test_noise=True)", "--output", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["partition"]["label_entropy"] is summary["partition"]["label_distance"] is None
    assert "label skew" not in capsys.readouterr().out
    assert 0 < summary["epsilon_median"] <= summary["epsilon"] <= 8
    assert summary["dp_delta"] < 1 / 90
    privacy = summary["privacy"]
    assert privacy["unit"] == "training row"
    assert privacy["test_noise"] is True
    assert privacy["weighting"] == "uniform"
    assert any("stopped" in item for item in privacy["not_covered"])
    assert {(folder / n).stat().st_mode & 0o077 for n in ("clients.jsonl", "clients.npz", "privacy.key", LEDGER)} == {0}
    assert read_run(folder).client_accuracy is None, "results.jsonl is not confidential"


@pytest.mark.parametrize("public", [False, True])
def test_nothing_is_fitted_on_rows_that_are_not_said_to_be_public(tmp_path, public):
    """Neither the temperature that `predict` divides by, nor weights of prompts in the saved adapter."""
    folder, measure = tmp_path / "run", f"validation(every=100, public={public})"
    given = {**TINY, "rounds": 1, "peft": "prompt_ensemble(prompts=2, length=2)", "measure": measure}
    words = ["--" + k.replace("_", "-") + f"={v}" for k, v in given.items()]
    assert main([*words, "--privacy", "user_dp(noise_multiplier=1)", "--output", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["temperature"] != 1) == public
    assert (SHARES in load_file(folder / "adapter" / OWN_TENSORS)) == public
    assert any("scores on validation and test examples" in item for item in summary["privacy"]["not_covered"])


def test_classes_that_nobody_has_named_are_said_not_to_be_covered(tmp_path):
    """One row that alone has a class would show in the head's shape and in labels.json. Named ones need no rows."""
    own = tmp_path / "own.csv"
    own.write_text("text,label\n" + "good film,pos\nbad film,neg\n" * 30)
    for named, data in ((False, f"file:{own}"), (True, f"file(path={str(own)!r}, labels='neg,odd,pos')")):
        given = {"dataset": data, "model": "tiny", "head": "private_centroids"}
        simulation, progress = trained(tmp_path / str(named), privacy="user_dp(noise_multiplier=1)", **given)
        said, warned = simulation.protection.summary()["privacy"]["not_covered"], simulation.protection.warnings()
        simulation.close()
        assert any("names of classes" in item for item in said) == any("labels='a,b,c'" in w for w in warned) != named
        assert progress.adapter["head.weight"].shape[0] == 2 + named
        assert progress.adapter["head.weight"].isfinite().all()


def test_equal_seeds_give_equal_runs_with_test_noise_only(tmp_path):
    runs = []
    for i, privacy in enumerate(("user_dp(noise_multiplier=1)", "user_dp(noise_multiplier=1, test_noise=True)") * 2):
        runs.append(trained(tmp_path / str(i), privacy=privacy)[1].adapter)
    equal = [all(torch.equal(runs[i][n], runs[i + 2][n]) for n in runs[i]) for i in (0, 1)]
    assert equal == [False, True]


def test_executors_and_plain_runs_agree_without_clipping_and_noise(tmp_path):
    """All clients, q = 1, a huge clip, no noise: the mean of plain local training."""
    given = {
        "dtype": "fp64",
        "cohort": "all",
        "optimizer": "sgd(head_rate=1.0)",
        "strategy": "fedit(weighting=uniform)",
        "learning_rate": 0.1,
    }
    _, plain = trained(tmp_path / "plain", **given)
    given.pop("strategy")
    _, user = trained(tmp_path / "user", privacy="user_dp(noise_multiplier=0, clip=1e9)", **given)
    for name in plain.adapter:
        assert torch.allclose(plain.adapter[name], user.adapter[name], rtol=1e-9, atol=1e-12)
        assert np.isfinite(plain.adapter[name]).all()


FEW_BITS = '[[profile]]\ncount = 3\nbase = "nf4"\n[[profile]]\ncount = 1\nbase = "int8"\n[[profile]]\ncount = 2\n'


@pytest.mark.parametrize("base", ["qlora", pytest.param("profiles", marks=pytest.mark.slow)])
def test_rows_are_protected_on_a_base_of_few_bits(tmp_path, base):
    """Without clipping and noise, at q = 1, it is the plain run on that base; with them it trains and is charged."""
    (tmp_path / "few.toml").write_text(FEW_BITS)
    own = {"qlora": {"peft": "qlora(rank=2, layers=1)"}, "profiles": {"clients": str(tmp_path / "few.toml")}}[base]
    given = {"cohort": "all", "optimizer": "sgd(head_rate=1.0)", "learning_rate": 0.1, "batch_size": 1000, **own}
    _, plain = trained(
        tmp_path / "plain", strategy="fedit(weighting=uniform)", grid="cohort(executor=sequential)", **given
    )
    _, whole = trained(tmp_path / "whole", privacy="dp_sgd(noise_multiplier=0, clip=1e9)", **given)
    unpacked_settings = {**given, "peft": TINY["peft"], "clients": TINY["clients"]}
    _, unpacked = trained(tmp_path / "unpacked", strategy="fedit(weighting=uniform)", **unpacked_settings)
    for name, tensor in plain.adapter.items():
        moved = (tensor - plain.started[name]).norm()
        assert moved > 0
        assert (whole.adapter[name] - tensor).norm() < 1e-4 * moved, name
        assert (unpacked.adapter[name] - tensor).norm() > 1e-3 * moved, "the base makes no difference"
    simulation, noised = trained(
        tmp_path / "noised", privacy="dp_sgd(epsilon=3, clip=0.5)", **{**given, "batch_size": 4}
    )
    assert 2.9 < simulation.protection.epsilons()[0] <= 3
    assert all(bool(t.isfinite().all()) and not torch.equal(t, noised.started[n]) for n, t in noised.adapter.items())

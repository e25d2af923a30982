"""The study of PEFT methods: its tables and rates."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from experiments.learning_rates import find_tuned_tables, insert_rates, rank_rates
from experiments.peft_methods.__main__ import FOLDER
from experiments.peft_methods.costs import measure
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.study.results import Result
from fedpeft.study.study_file import read_study
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.config import read_config
from fedpeft.wiring.run_spec import parse_run

OF_STRATEGIES = {"lora_sb", "lora_gram", "row_lora", "expert_lora"}
OF_PICTURES = {name for name in PEFT_METHODS.names if PEFT_METHODS.part(name).of_pictures}
"""They read no texts, which this study is of."""

WITHOUT_RATE = {"linear_probe", "head2toe"}
"""They train the head alone, whose rate is the same with all methods, and is not tuned."""


NEWER = {"miss", "pissa", "subspace", "unipelt"}
"""They are newer than the study's runs."""


def test_every_method_is_in_the_study_with_a_rate_of_its_own():
    for preset in ("small", "full", "tuning"):
        runs = read_study(FOLDER / "study.toml", preset).plan_runs()
        used = {PEFT_METHODS.build(r.config.peft).name for r in runs}
        untuned = WITHOUT_RATE if preset == "tuning" else set()
        assert set(PEFT_METHODS.names) - OF_STRATEGIES - OF_PICTURES - NEWER - untuned <= used
    rates = {
        len({r.config.learning_rate for r in runs if r.point["method"] == m}) for m in {r.point["method"] for r in runs}
    }
    assert rates == {5}


def test_what_is_fused_was_trained_as_its_row_is_but_on_another_task():
    """The commands of the README put the finished runs where the rows look for them."""
    runs = read_study(FOLDER / "study.toml", "small").plan_runs()
    [target] = [r.config for r in runs if r.point["method"] == "bottleneck, pfeiffer" and r.config.seed == 0]
    [fused] = {r.config.peft for r in runs if r.point["method"] == "adapter_fusion"}
    readme = (FOLDER / "README.md").read_text()
    files = sorted((FOLDER / "stage_one").glob("*.toml"))
    assert [str(f) for f in PEFT_METHODS.build(fused).folders] == [
        f"experiments/peft_methods/stage_one/runs/{name}" for name in ("reviews", "code_types")
    ]
    for file in files:
        assert f"stage_one/{file.name} --output experiments/peft_methods/stage_one/runs/{file.stem}\n" in readme
        config = resolve_auto(parse_run(read_config(file))).config
        assert config.dataset == file.stem
        same = {"partition": config.partition, "dataset": config.dataset, "measure": config.measure}
        assert config == resolve_auto(parse_run(replace(target, **same))).config
    assert {f.stem for f in files} == {"reviews", "code_types"}


def test_the_best_rates_go_into_the_study():
    def run(method, rate, accuracy):
        return Result(
            {}, "finished", 0, point={"method": method, "learning_rate": rate}, rounds=({"accuracy": accuracy},)
        )

    found = rank_rates([run("lora", "0.005", 0.8), run("lora", "0.02", 0.9), run("lora + bitfit", "0.001", 0.7)])
    assert found["lora"][0] == (0.9, "0.02")
    once_good = [run("lora", "0.02", 0.1), run("lora", "0.005", 0.9), run("lora", "0.05", 1.0)]
    again = rank_rates([run("lora", "0.005", 0.8), run("lora", "0.02", 0.9), *once_good])
    assert [rate for _, rate in again["lora"]] == ["0.005", "0.02"], "by the mean, of those that were tried as often"
    language = [
        replace(
            run("lora", rate, 0.5), summary={"metric": "perplexity"}, rounds=({"accuracy": accuracy, "loss": loss},)
        )
        for rate, accuracy, loss in (("0.005", 0.3, 4.5), ("0.02", 0.2, 4.4))
    ]
    assert rank_rates(language)["lora"][0] == (-4.4, "0.02"), "language models are judged by their loss"
    toml = (FOLDER / "study.toml").read_text()
    changed = insert_rates(toml, {"lora": "0.02", "full fine-tuning": "0.00003"})
    lines = [a for a, b in zip(changed.splitlines(), toml.splitlines(), strict=True) if a != b]
    for line in lines:
        rate = 0.02 if '"lora"' in line else 3e-5
        said = [float(number) for number in re.findall(r"rate = ([0-9.e-]+)", line)]
        assert said[0] == rate
        assert said[1:] in ([], [pytest.approx(0.0005 / rate, rel=1e-5)]), "the head learns as fast as before"
    assert not any("bitfit" in line for line in lines)
    assert {line.split('"')[1] for line in lines} == {"lora", "full fine-tuning"}


def test_each_tuning_writes_the_rates_that_it_has_tried():
    toml = (FOLDER / "study.toml").read_text()
    small, images, language = (find_tuned_tables(toml, f"{name}tuning") for name in ("", "images_", "language_"))
    assert small == {"axes", "presets.small.axes"}
    assert images == {"presets.images.axes"}
    assert language == {"presets.language.axes"}
    for tables in (small, images, language):
        changed = insert_rates(toml, {"lora": "0.0007"}, tables)
        blocks = re.split(r"(?m)^(?=\[)", changed)
        touched = {block.split("]")[0].strip("[") for block in blocks if "learning_rate = 0.0007" in block}
        assert touched == tables & {block.split("]")[0].strip("[") for block in blocks}


def test_a_rate_that_is_found_again_leaves_its_line_as_it_is():
    toml = (FOLDER / "study.toml").read_text()
    assert insert_rates(toml, {"lora": "0.005"}, find_tuned_tables(toml, "tuning")) == toml


def test_a_variant_takes_the_rate_of_what_it_is_a_variant_of():
    line = '[axes]\nmethod = [{label = "flora, mixed ranks", strategy = "flora", learning_rate = 0.004}]\n'
    assert "learning_rate = 0.008}" in insert_rates(line, {"flora": "0.008"})
    assert insert_rates(line, {"fedit": "0.008"}) == line
    assert "learning_rate = 0.002}" in insert_rates(line, {"flora": "0.008", "flora, mixed ranks": "0.002"})


def test_costs_follow_what_is_trained():
    found = measure({"lora": "lora(rank=2)", "qlora": "qlora(rank=2)", "full": "full"}, "tiny")
    lora, full = found["lora"], found["full"]
    assert lora.parameters < full.parameters
    assert lora.memory < full.memory
    assert lora.payload == 4 * lora.parameters
    assert 0 < lora.share < full.share <= 1
    assert lora.step > lora.answer > 0
    assert lora.merged is not None
    assert found["qlora"].merged is full.merged is None

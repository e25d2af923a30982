"""A summary from elsewhere whose values have other types than a run writes is one sentence, and no traceback."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fedpeft.commands.report import main
from fedpeft.reporting.summary import Costs, Quality, Summary
from fedpeft.study.results import check_summary
from tests.refusals import has_error
from tests.studies.made import made_result, write_study

WRONG = ["a text", [1], {"a": 1}]
NUMBERS = ["accuracy", "loss", "uplink_bytes", "seconds", "peak_memory_bytes", "epsilon", "baseline_accuracy"]


def reported(folder, **changes) -> int:
    """Return the exit code of a report on a study whose summaries have these values."""
    result = made_result({"codec": "fp32"}, 0, 0.8, 10.0)
    study = write_study(folder / "study", [dataclasses.replace(result, summary={**(result.summary or {}), **changes})])
    return main([str(study), "--output", str(folder / "page.html")])


@pytest.mark.parametrize("value", ["a laptop", 5, ["a"]])
def test_hardware_that_is_no_table(value, tmp_path, capfd):
    assert reported(tmp_path, hardware=value) == 2
    assert has_error("".join(capfd.readouterr()), "FP5219", 1, "hardware", "Mapping[str, Any]")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", WRONG)
def test_numbers_that_are_none(name, value, tmp_path, capfd):
    assert reported(tmp_path, **{name: value}) == 2
    assert has_error("".join(capfd.readouterr()), "FP5219", 1, name)


@pytest.mark.parametrize("inside", [{"gpus": 5}, {"gpus": [{}], "cpu": []}, {"gpus": "two"}, {"workers": {}}])
def test_what_lies_inside_the_hardware_is_shown_as_it_is(inside, tmp_path):
    assert reported(tmp_path, hardware=inside) == 0
    assert (tmp_path / "page.html").is_file()


def test_a_run_on_its_own(tmp_path, capfd):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("seed = 1\n")
    (folder / "summary.json").write_text(json.dumps({"metric": "accuracy", "accuracy": "good", "seed": 1}))
    assert main([str(folder), "--output", str(tmp_path / "page.html")]) == 2
    assert has_error("".join(capfd.readouterr()), "FP5218", "accuracy", "float")


@pytest.mark.fast
def test_every_declared_type_is_known():
    """A declaration of another form would be let through without a word."""
    declared = {str(one.type) for part in (Quality, Costs, Summary) for one in dataclasses.fields(part)}
    plain = {text.partition("[")[0].removesuffix(" | None") for text in declared}
    assert plain == {"int", "float", "str", "Mapping", "bool", "Quality", "Costs"}
    assert check_summary({"accuracy": 1, "epsilon": None, "unknown": "x"})

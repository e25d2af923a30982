"""Results do not change: small runs in fp64 give the numbers that are kept in tests/golden/runs.

`python -m experiments.golden COMMIT_A COMMIT_B` compares many more runs of two commits, bit for bit.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import torch

from experiments.checkouts import REPOSITORY
from experiments.golden.__main__ import Settings, main
from experiments.golden.cases import BASE, Case, list_cases
from experiments.golden.comparison import Measure
from experiments.golden.flags import format_words
from experiments.golden.outcome import Outcome, find_differences
from experiments.golden.samples import (
    GOLDEN,
    TOLERANCE,
    LocalRuns,
    choose_positions,
    get_file,
    list_golden_cases,
    load_outcome,
)
from fedpeft.errors import RunError
from tests.refusals import has_error

CASES = list_golden_cases()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return LocalRuns(tmp_path_factory.mktemp("golden"))


@pytest.mark.fast("the golden runs")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_results_are_those_that_are_kept(case, here):
    found = find_differences(load_outcome(case), here.run(case))
    assert not [d for d in found if d.amount > TOLERANCE]


@pytest.mark.fast
def test_all_that_is_kept_is_looked_at():
    assert {get_file(case) for case in CASES} == set(GOLDEN.glob("*.json"))
    assert {case.settings["dtype"] for case in CASES} == {"fp64"}
    assert all(load_outcome(case).tensors and load_outcome(case).values for case in CASES)
    assert sum(file.stat().st_size for file in GOLDEN.glob("*")) < 500_000


@pytest.mark.fast
def test_names_of_cases_are_unique_and_so_are_their_folders():
    names = [get_file(case).name for case in list_cases()]
    assert len(set(names)) == len(names)


# ------------------------------------------------------------------------------------------- comparing two commits


def test_other_results_are_found(here):
    """A rate that is a millionth larger shows, in a tensor as in a value; and by how much."""
    case = next(case for case in CASES if case.name == "strategy/fedit")
    other = Case("another rate", {**case.settings, "learning_rate": 3e-3 * (1 + 1e-6)})
    found = find_differences(here.run(case), here.run(other))
    assert any(d.name.startswith("checkpoint") and TOLERANCE < d.amount < 1e-3 for d in found)
    assert any(d.name.endswith("train_loss") for d in found)


@pytest.mark.fast
def test_differences_are_relative_and_what_is_missing_is_beyond_any_tolerance():
    one = Outcome({"x": torch.tensor([1.0, 200.0]), "y": torch.ones(2)}, {"loss": 0.5, "said": "a", "rows": 3})
    assert find_differences(one, one) == []
    other = Outcome({"x": torch.tensor([1.0, 202.0]), "z": torch.ones(2)}, {"loss": 0.4, "said": "b", "more": 1})
    found = {d.name: d.amount for d in find_differences(one, other)}
    assert found == pytest.approx(
        {"x": 2 / 202, "y": math.inf, "z": math.inf, "loss": 0.2, "said": math.inf, "rows": math.inf}
    )
    assert find_differences(Outcome(values={"zero": 1e-17}), Outcome(values={"zero": -2e-17}))[0].amount < 1e-10
    assert (
        find_differences(Outcome({"x": torch.ones(2)}), Outcome({"x": torch.tensor([1.0, math.nan])}))[0].amount
        == math.inf
    )
    assert find_differences(Outcome({"x": torch.ones(2)}), Outcome({"x": torch.ones(2).double()}))[0].amount == math.inf


@pytest.mark.fast
def test_a_case_is_judged_by_the_tolerance_and_a_refusal_is_a_difference():
    case, one = CASES[0], Outcome(values={"loss": 1.0, "bytes": 7})
    near = replace(one, values={"loss": 1.001, "bytes": 7})
    exact = Measure()
    assert exact.judge(case, one, one).same
    assert not exact.judge(case, one, near).same
    assert [d.name for d in exact.judge(case, one, near).beyond] == ["loss"]
    assert Measure(tolerance=0.01).judge(case, one, near).same
    assert Measure(ignored="^lo").judge(case, one, near).same
    assert not Measure(ignored="bytes").judge(case, one, near).same
    assert not Measure(tolerance=1.0).judge(case, one, "refused").same
    assert not Measure(tolerance=1.0).judge(case, "refused", "refused").same
    assert exact.judge(case, "unknown strategy", one).same, "a part that is new can't be compared"
    assert "are new" in exact.judge(case, one, replace(one, values={**one.values, "speed": 2})).text


@pytest.mark.fast
def test_sampled_entries_are_spread_over_a_tensor():
    assert choose_positions(0) == []
    assert choose_positions(1) == [0]
    found = choose_positions(10_000)
    assert len(found) == 8
    assert max(b - a for a, b in zip([0, *found], [*found, 9_999], strict=True)) < 2_000


@pytest.mark.fast
def test_a_case_that_fails_says_so(here, capsys):
    with pytest.raises(RunError, match="'wrong'"):
        here.run(Case("wrong", {**BASE, "strategy": "fedut"}))
    assert has_error(capsys.readouterr().err, "FP1231", "did you mean")


@pytest.mark.fast
def test_settings_are_words_of_a_command():
    words = format_words({"workers": 3, "verbose": True, "codec": "small"})
    assert words == ["--workers", "3", "--verbose", "--codec", "small"]


CHANGED = """
FedIT.contribution = lambda self, update, *_: {name: delta * (1 + 1e-12) for name, delta in update.delta.items()}
part = FedIT
"""


@pytest.mark.slow
def test_a_tree_with_another_fedit_differs_where_fedit_runs(tmp_path, capfd):
    for folder in ("fedpeft", "strategies", "clients"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    rule = tmp_path / "strategies" / "fedit.py"
    rule.write_text(rule.read_text().replace("\npart = FedIT\n", CHANGED))
    names = ("strategy/fedit", "strategy/krum", "resumed/fedsa_lora", "real clients/fedit")
    only = f"^({'|'.join(names)})$"
    assert main(Settings((str(REPOSITORY), str(tmp_path)), only=only)) == 1
    said = capfd.readouterr().out
    found = {name: line for line in said.splitlines() for name in names if line.startswith(name)}
    assert [("equal: " in found[name]) for name in names] == [False, True, True, False], said
    assert "DIFFERS" in found["strategy/fedit"]
    assert "DIFFERS" in found["real clients/fedit"]

"""What a run recommends where its clients' classes lie far apart."""

from __future__ import annotations

import pytest

from fedpeft.config import RunConfig
from fedpeft.run.checks import advice_on_owners
from fedpeft.run.setup import settled
from fedpeft.simulate import main

RUN = ["--dataset", "tiny", "--tokens", "16", "--clients", "8", "--rounds", "1", "--local-work", "steps(1)",
       "--workers", "1"]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "advised"),
    [
        (["--partition", "dirichlet(alpha=0.01)"], True),
        (["--partition", "iid"], False),
        (["--partition", "dirichlet(alpha=0.01)", "--drift", "label_shift"], False),
        (["--partition", "dirichlet(alpha=0.01)", "--head", "zero"], False),
        (["--partition", "dirichlet(alpha=0.01)", "--privacy", "secure_sum", "--cohort", "all"], False),
    ],
)
def test_a_correction_of_label_shift_is_advised_where_it_can_help(more, advised, tmp_path, capsys):
    assert main([*RUN, *more, "--output", str(tmp_path / "run")]) == 0
    assert ("--drift label_shift" in " ".join(capsys.readouterr().out.split())) is advised


@pytest.mark.parametrize(("partition", "said"), [("auto", True), ("iid", True), ("natural", False), ("grouped", False)])
def test_owners_that_a_user_names_and_a_partition_leaves_aside_are_said(partition, said):
    given = RunConfig(dataset="file(path='a.csv', owner=shop)", partition=partition)
    words = advice_on_owners(settled(given))
    assert ("the column shop says whose row it is" in words) is said
    assert not advice_on_owners(settled(RunConfig(dataset="file:a.csv", partition=partition)))

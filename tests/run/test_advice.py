"""What a run recommends where its clients' classes lie far apart."""

from __future__ import annotations

import pytest

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

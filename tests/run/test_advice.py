"""What a run recommends for clients like its own."""

from __future__ import annotations

import pytest

from fedpeft.run import advice
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


@pytest.mark.parametrize(
    ("more", "advised"),
    [
        ([], True),
        (["--local-work", "epochs(1)", "--batch-size", "128"], True),
        (["--local-work", "steps(2)"], False),
        (["--optimizer", "sgd"], False),
        (["--server-optimizer", "adam"], False),
        (["--privacy", "user_dp(noise_multiplier=4)", "--head", "zero"], False),
        (["--clients", "7"], False),
    ],
)
def test_steps_at_the_server_are_advised_where_many_clients_take_one_each(more, advised, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(advice, "MANY", 8)
    assert main([*RUN, *more, "--output", str(tmp_path / "run")]) == 0
    assert ("plain steps at many small clients" in " ".join(capsys.readouterr().out.split())) is advised

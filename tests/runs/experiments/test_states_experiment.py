"""What the bits of the way down buy: the command on a run of the tiny data set."""

from __future__ import annotations

import sys

import pytest

from experiments import exit_on_error
from experiments.codecs import states
from fedpeft.simulate import main

TINY = ["--dataset=tiny", "--clients=4", "--cohort=1", "--tokens=16", "--dtype=fp32", "--workers=1", "--rounds=2",
        "--local-work=steps(10)", "--peft=lora(layers=2)", "--head=ridge(strength=0.001)",
        "--learning-rate=0.02", "--safeguard=none", "--measure=validation(keep=last)"]  # fmt: skip


def table(monkeypatch, capsys, folder):
    monkeypatch.setattr(sys, "argv", ["states", str(folder)])
    capsys.readouterr()
    states.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| grid(")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_finer_grids_have_smaller_errors_and_balanced_ones_coarser_heads(tmp_path, monkeypatch, capsys):
    assert main([*TINY, "--output", str(tmp_path / "run")]) == 0
    rows = {
        (grid, steps): [float(x) for x in numbers]
        for grid, steps, *numbers in table(monkeypatch, capsys, tmp_path / "run")
    }
    assert list(rows) == [(grid, "balanced" if balance else "one") for grid, balance in states.GRIDS]
    size, *errors = rows["grid(bits=4.0)", "balanced"][:4]
    coarse_size, *coarse_errors = rows["grid(bits=1.5)", "balanced"][:4]
    assert size > coarse_size
    assert all(a < b for a, b in zip(errors, coarse_errors, strict=True))
    balanced, one = rows["grid(bits=3.0)", "balanced"], rows["grid(bits=3.0)", "one"]
    assert balanced[3] > one[3], "the head's"
    assert balanced[1] < one[1], "A's"


@pytest.mark.parametrize("peft", ["ia3", None])
def test_what_it_cannot_use_is_one_sentence(tmp_path, monkeypatch, capsys, peft):
    folder = tmp_path / "run"
    if peft:
        assert main([*TINY, "--peft", peft, "--output", str(folder)]) == 0
    with pytest.raises(SystemExit) as end, exit_on_error():
        table(monkeypatch, capsys, folder)
    assert end.value.code == 2
    assert ("a run of ia3" if peft else "holds no checkpoint") in capsys.readouterr().err

"""What a run's own files held: recorded, compared wherever they lie, and refused where they have changed."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from fedpeft.evaluate.__main__ import main as evaluate
from fedpeft.reporting.user_files import RECORD
from fedpeft.simulate import main as simulate
from tests.refusals import has_error
from tests.run.swapped import rows, swap


def run_on(folder: Path, *more: str) -> Path:
    rows(folder / "rows.csv")
    words = ["--dataset", f"file:{folder / 'rows.csv'}", "--model=tiny", "--clients=3", "--cohort=3", "--rounds=1"]
    assert simulate([*words, "--partition=iid", "--workers=1", *more, "--output", str(folder / "run")]) == 0
    return folder / "run"


def test_evaluate_does_not_take_rows_of_another_file_for_the_run_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_on(tmp_path)
    assert evaluate([str(run)]) == 0
    assert "no record of" not in capsys.readouterr().out
    written = (run / "evaluation" / "evaluation.json").read_bytes()
    swap(tmp_path / "rows.csv")
    assert evaluate([str(run)]) == 2
    cure = f"fedpeft predict {run} --data FILE"
    assert has_error(capsys.readouterr().err, "FP5173", tmp_path / "rows.csv", cure)
    assert (run / "evaluation" / "evaluation.json").read_bytes() == written
    (run / RECORD).unlink()  # as an earlier version has left it
    assert evaluate([str(run)]) == 0
    assert "the run has no record of" in " ".join(capsys.readouterr().out.split())
    assert "the run has no record of" in json.loads((run / "evaluation" / "evaluation.json").read_text())["notes"][0]


def test_a_private_run_s_record_is_confidential(tmp_path: Path) -> None:
    run = run_on(tmp_path, "--privacy=user_dp(noise_multiplier=1)")
    assert stat.S_IMODE((run / RECORD).stat().st_mode) == 0o600

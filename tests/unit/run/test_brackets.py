"""Names and paths with brackets, which are no markup of the console: commands print them as they are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from fedpeft.commands import certs, check, report
from fedpeft.data.rows import Rows
from fedpeft.evaluate import __main__ as evaluate
from fedpeft.evaluate.evaluation import EvaluationResult
from fedpeft.reporting.console import format_model_line
from fedpeft.study import __main__ as study
from fedpeft.study.results import ResultsFile
from fedpeft.tune import __main__ as tune
from tests.studies.made import made_result
from tests.tune.made import TEXT

NAME = "sweep [/x] [lr]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "runs[a] [" / "b]"
    found.mkdir(parents=True)
    return found


def shown(*things: object) -> str:
    console = Console(width=500, record=True, quiet=False)
    for thing in things:
        console.print(thing)
    return console.export_text()


def test_a_search_and_its_folder(folder, capsys):
    path = folder / "search.toml"
    path.write_text(f'name = "{NAME}"\n{TEXT}', encoding="utf-8")
    assert tune.main([str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{NAME}: 12 trials")
    assert f"-> {folder / 'search'}" in said


def test_a_study_and_its_folder(folder, capsys):
    path = folder / "study.toml"
    path.write_text(f'name = "{NAME}"\nseeds = [0]\n[axes]\nserver_optimizer = ["sgd"]\n', encoding="utf-8")
    assert study.main([str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{NAME}: ")
    assert f"-> {folder}\n" in said


def test_a_report_says_where_it_is_and_what_it_skips(folder, capsys):
    made = folder / "made"
    made.mkdir()
    ResultsFile(made / "results.jsonl").append(made_result({"codec": "fp32"}, 0, 0.7, 8.0))
    (folder / "empty[c]").mkdir()
    page = folder / "page.html"
    assert report.main([str(made), str(folder / "empty[c]"), "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert f"skipped: FP5210 {folder / 'empty[c]'}" in said
    assert f"1 run -> {page}" in said


def test_certificates(folder, capsys):
    assert certs.main(["--folder", str(folder), "--clients", "ann"]) == 0
    assert str(folder / "ca.pem") in capsys.readouterr().out.replace("\n", "")


def test_classes_measures_and_models(folder):
    assert "accuracy [task]" in shown(
        evaluate.build_table(EvaluationResult({"global": {"accuracy [task]": 1.0}}, [], []))
    )
    rows = Rows(["a", "b"], np.array([0.0, 1.0]))
    assert "price [eur]: mean" in shown(
        check._build_number_table(SimpleNamespace(label_names=("price [eur]",)), {"test": rows})
    )
    setup = SimpleNamespace(layout=SimpleNamespace(numel=1), parameters=10, model_directory=Path("tiny[v2]"))
    assert "tiny[v2]:" in shown(format_model_line(setup))

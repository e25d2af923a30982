"""What commands print at their end can be pasted, and works."""

from __future__ import annotations

import importlib
import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from fedpeft.__main__ import find_module
from fedpeft.parts.families import DATASETS
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.next_commands import list_next_commands, say_next
from fedpeft.simulate import main as simulate

TINY = ["--dataset", "tiny", "--model", "tiny", "--tokens", "16", "--clients", "2", "--rounds", "1", "--dtype", "fp32",
        "--workers", "1", "--local-work", "steps(2)"]  # fmt: skip


def pasted(command: str) -> int:
    """Run a command line in this process; returns its exit code."""
    program, name, *words = shlex.split(command)
    assert program == "fedpeft"
    return importlib.import_module(find_module(name)).main(words)


def lines_after(said: str, title: str) -> list[str]:
    """Return the lines of an output that stand below a title."""
    lines = said.split("\n")
    (start,) = [i for i, line in enumerate(lines) if line.startswith(title)]
    return [line for line in lines[start + 1 :] if line]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_a_run_proposes_works_and_an_export_loads_as_it_says(here, capsys):
    """The folder's name has a space and a quote, which a shell would take apart."""
    assert simulate([*TINY, "--output", "runs/bob's first"]) == 0
    commands = lines_after(capsys.readouterr().out, "next:")
    assert [shlex.split(line)[1] for line in commands] == ["predict", "evaluate", "export"]
    assert all(shlex.split(line)[2] == "runs/bob's first" for line in commands)
    predict, evaluate, export = commands
    assert pasted(predict) == 0
    assert capsys.readouterr().out.strip()
    assert pasted(evaluate) == 0
    assert lines_after(capsys.readouterr().out, "next:") == [predict, export]
    assert pasted(export) == 0
    said = capsys.readouterr().out
    assert "FOLDER" not in said
    *imports, load = lines_after(said, "to load it")
    assert imports == ["import transformers"]
    assert "bob's first/export" in load
    assert "`" not in load


def test_an_adapter_loads_by_the_lines_that_are_printed(here, capsys):
    assert simulate([*TINY, "--peft", "lora(rank=2)", "--output", "run"]) == 0
    assert pasted("fedpeft export run --output 'out put'") == 0
    lines = lines_after(capsys.readouterr().out, "to load it")
    found: dict[str, object] = {}
    exec("\n".join([*lines[:-1], f"found = {lines[-1]}"]), found)
    assert type(found["found"]).__name__ == "PeftModel"


@pytest.mark.fast
def test_a_folder_without_a_finished_run_proposes_nothing(here):
    console = Console(file=io.StringIO())
    say_next(Path("nowhere"), console)
    assert console.file.getvalue() == ""


@pytest.mark.parametrize(("dataset", "evaluated"), [("tiny", True), ("clients(labels='a,b')", False)])
def test_a_run_whose_examples_only_clients_hold_proposes_no_evaluation(dataset, evaluated, finished_run):
    run = FinishedRun.read(finished_run(dataset="tiny", model="tiny", tokens=16, clients=2, rounds=1))
    run.__dict__["dataset"] = DATASETS.build(dataset)
    assert any(" evaluate " in line for line in list_next_commands(run)) is evaluated

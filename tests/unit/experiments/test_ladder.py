"""The ladder: every rung on a made task, the table, and what is measured once."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from experiments.ladder import __main__ as command
from experiments.ladder.rungs import Cell, compute_frozen_features, create_folds, sample, score_probe, score_surface
from experiments.ladder.settings import TASKS, Task, create_natural, create_passes
from fedpeft.data.rows import load_dataset
from fedpeft.parts.families import PARTITIONS
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import build_config

TINY = "tiny(rows=220, test_rows=80, classes=3)"
SMALL = Task(
    dataset=TINY,
    federated={"one": create_natural(1, 3, batch_size=8), "two": create_natural(2, 3, batch_size=8)},
    heads=create_natural(1, 3, peft="head2toe", batch_size=8),
    pooled={"a pass": create_passes(1, 2)},
    alone=create_passes(1, 1),
    full=create_passes(1, 1, peft="full", learning_rate=1e-3),
)


@pytest.mark.parametrize("name", TASKS)
def test_all_settings_are_legal(name: str) -> None:
    task = TASKS[name]
    for fields in (*task.federated.values(), *task.pooled.values(), task.heads, task.alone, task.full):
        build_config({"dataset": task.dataset, **fields}, "the ladder")


def test_words_beat_guessing() -> None:
    found = score_surface(load_dataset("tiny"))
    assert 0.6 < found["accuracy"] < 0.9  # a tuned linear model on words reaches 0.725; guessing 0.25
    assert 0.6 < found["validation"] < 0.9


def test_the_probe_has_the_best_of_three_poolings() -> None:
    found = score_probe(TINY, {"workers": 1})
    assert set(found["poolings"]) == {"mean", "maximum", "first"}
    assert len(set(found["poolings"].values())) == 3
    assert found["validation"] == pytest.approx(max(found["poolings"].values()), abs=1e-4)
    assert found["poolings"][found["pooling"]] == max(found["poolings"].values())
    assert 1 / 3 < found["accuracy"] <= 1


@pytest.mark.medium
def test_a_probe_of_all_blocks_reads_all_blocks() -> None:
    found, last = score_probe(TINY, {"workers": 1}, all_blocks=True), score_probe(TINY, {"workers": 1})
    assert set(found["poolings"]) == {"mean"}
    assert found["validation"] != last["poolings"]["mean"]
    assert 1 / 3 < found["accuracy"] <= 1


@pytest.mark.parametrize("all_blocks", [False, True])
def test_features_are_pooled_over_a_rows_own_tokens(tmp_path: Path, all_blocks: bool) -> None:
    """Beside each row by itself, cut to its length."""
    config = build_config({"dataset": TINY, "workers": 1, "dtype": "fp32"}, "a run")
    with ConsoleObserver(Console(quiet=True)) as observer:
        simulation = Simulation(config, tmp_path, observer)
        rows = simulation.rows.dataset.test.take(np.arange(40))
        found = compute_frozen_features(simulation, rows, all_blocks)
        setup = simulation.setup
        base = setup.task.base(setup.model_directory, torch.float32)
        tokens = setup.task.tokenise(rows, setup.model_directory, setup.tokens)
        simulation.close()
    assert len(set(tokens.lengths.tolist())) > 1
    for i in range(40):
        inputs = {name: tensor for name, tensor in tokens.batch([i]).items() if name != "labels"}
        with torch.inference_mode():
            output = base(**inputs, output_hidden_states=True)
        states = output.last_hidden_state[0, : tokens.lengths[i]]
        each = [state[0, : tokens.lengths[i]] for state in output.hidden_states]
        whole = torch.cat([(state / state.norm(dim=-1, keepdim=True)).mean(0) for state in each])
        wanted = {"mean": states.mean(0), "maximum": states.amax(0), "first": states[0]}
        wanted = {"mean": whole} if all_blocks else wanted
        assert found.keys() == wanted.keys()
        for name in wanted:
            torch.testing.assert_close(torch.from_numpy(found[name][i]), wanted[name], rtol=1e-4, atol=1e-5)


def test_pixels_alone_tell_digits() -> None:
    found = score_surface(load_dataset("digits"))
    assert found["features"] == "pixels"
    assert found["accuracy"] > 0.9


def test_no_owner_is_fitted_and_scored() -> None:
    rows = load_dataset(TINY).train
    assert rows.owners is not None
    scored = []
    for fitted, held in create_folds(rows):
        assert not set(rows.owners[fitted].tolist()) & set(rows.owners[held].tolist())
        scored += held.tolist()
    assert sorted(scored) == list(range(len(rows)))


def test_the_sample_reaches_from_the_smallest_client_to_the_largest() -> None:
    data = load_dataset(TINY)
    federation = SMALL.federated["one"]
    chosen = [len(rows) for _, rows in sample(data, federation, 4)]
    everyone = [len(rows) for _, rows in sample(data, federation, 100)]
    assert len(everyone) == PARTITIONS.build("natural").split(data.train, 0, 0).sizes.size == 12
    assert (chosen[0], chosen[-1], len(chosen)) == (min(everyone), max(everyone), 4)
    assert chosen == sorted(chosen)


def line(rung: str, accuracy: float, label: str = "", seed: int = 0, **more: object) -> dict[str, object]:
    return {"task": "t", "rung": rung, "label": label, "seed": seed, "accuracy": accuracy, **more}


def test_the_table() -> None:
    lines = [
        line("federated", 0.8, "x", 0, validation=0.9, seconds=10),
        line("federated", 0.7, "x", 1, validation=0.8, seconds=20),
        line("alone", 0.3, "client 1", rows=20, validation=0.5),
        line("alone", 0.5, "client 7", rows=90, validation=0.5),
        line("majority", 0.25),
    ]
    assert command.format_table(lines)[2:] == [
        "| t | majority |  | 25.0 |  | 1 |  |",
        "| t | alone | 2 clients of 20 to 90 rows | 40.0 (30.0 to 50.0) |  | 2 |  |",
        "| t | federated | x | 75.0 ± 7.1 | 85.0 | 2 | 15 |",
    ]


def test_the_text_around_the_table_stays(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps(line("majority", 0.25)) + "\n")
    readme = tmp_path / "README.md"
    readme.write_text(f"Before.\n{command.BEGIN}\nold\n{command.END}\nAfter.\n")
    command.write_table(tmp_path)
    text = readme.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert "| t | majority |" in text
    command.write_table(tmp_path)
    assert readme.read_text() == text


def test_a_long_step_says_that_it_goes_on(tmp_path, monkeypatch, capsys):
    def slow():
        time.sleep(0.3)
        return {"accuracy": 0.5}

    monkeypatch.setitem(command.TASKS, "tiny", SMALL)
    monkeypatch.setattr(
        command, "create_cells", lambda *_: [Cell("words", "", 0, slow), Cell("probe", "1e-3", 2, slow)]
    )
    monkeypatch.setattr(command, "SILENCE", 0.05)
    monkeypatch.setattr("sys.argv", ["ladder", "--dataset", "tiny", "--output", str(tmp_path / "new")])
    command.main()
    said = list(dict.fromkeys(re.sub(r"\d s$", "N s", line) for line in capsys.readouterr().out.splitlines()))
    assert said == [
        "tiny: reading the rows",
        "tiny: words seed 0",
        "...     tiny: words seed 0: N s",
        "tiny: words seed 0: 0.5000",
        "tiny: probe 1e-3 seed 2",
        "...     tiny: probe 1e-3 seed 2: N s",
        "tiny: probe 1e-3 seed 2: 0.5000",
    ]

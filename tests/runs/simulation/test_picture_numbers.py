"""Pictures with numbers: from a folder to a prediction error far below the spread of the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import fedpeft
from fedpeft.commands.check import main as check
from fedpeft.commands.predict import main as predict
from tests.refusals import has_error


@pytest.mark.slow
def test_a_run_on_pictures_with_numbers_finds_them(tmp_path, capfd):
    generator, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    lines = ["file_name,label"]
    for i in range(60):
        grey = int(generator.integers(20, 235))
        noise = generator.normal(grey, 10, (32, 32, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{grey / 10 + 0.05:.2f}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    assert check([str(folder), "--clients", "3"]) == 0
    run = fedpeft.run_simulation(
        dataset=f"file:{folder}", model="tiny_vision", clients=3, cohort="all", rounds=1, workers=1, dtype="fp32",
        partition="iid", local_work="steps(1)", output=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert run.summary["metric"] == "skill"
    assert run.summary["targets"]["r2"] > 0.9
    assert run.summary["targets"]["rmse"] < 2
    capfd.readouterr()
    assert predict([str(run.folder), "a text"]) == 2
    assert has_error(capfd.readouterr().err, "FP1272", "a text")
    assert predict([str(run.folder), str(folder / "0.png")]) == 0
    assert float(capfd.readouterr().out) == pytest.approx(float(lines[1].split(",")[1]), abs=6)

"""What a hub reads of an exported model's card."""

from __future__ import annotations

import shutil

from huggingface_hub import ModelCard

from fedpeft.commands.export import main as export
from fedpeft.models.base_model import resolve_model
from fedpeft.simulate import main as simulate


def test_a_base_that_no_hub_can_have_is_named_to_people_alone(tmp_path):
    """A hub refuses a card whose base_model is no name of a hub's: of two towers, or of some folder."""
    of = {}
    for name in ("my-base", "my base (2)"):
        shutil.copytree(resolve_model("tiny"), tmp_path / name)
        run, out = str(tmp_path / f"{name}-run"), tmp_path / f"{name}-out"
        words = ["--dataset=tiny", "--clients=4", "--cohort=2", "--rounds=1", "--local-work=steps(1)", "--workers=1"]
        assert simulate([*words, "--dtype=fp32", "--model", str(tmp_path / name), "--output", run]) == 0
        assert export([run, "--output", str(out)]) == 0
        of[name] = ModelCard.load(out / "README.md")
        assert f"| base model | {name} |" in of[name].text
    assert of["my-base"].data.base_model == "my-base"
    assert of["my base (2)"].data.base_model is None


def test_a_card_says_how_rows_lie_in_words(tmp_path):
    run, out = str(tmp_path / "run"), tmp_path / "out"
    words = ["--dataset=tiny", "--clients=4", "--rounds=1", "--local-work=steps(1)", "--workers=1", "--dtype=fp32"]
    assert simulate([*words, "--output", run]) == 0
    assert export([run, "--output", str(out)]) == 0
    text = (out / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| partition |")]
    assert line.startswith("| partition | 4 clients, examples ")
    assert "(min/median/max), label skew " in line
    assert "label entropy" not in text
    assert "resampled" not in text

"""An export reads and copies the run's own files only: a link in a folder from elsewhere leads to no file of ours."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedpeft.commands.export import main as export
from fedpeft.commands.predict import main as predict
from fedpeft.machine.files import copy
from fedpeft.peft import saved_adapter
from fedpeft.simulate import main as simulate
from tests.refusals import has_error, refuses

QUICK = ["--dataset=tiny", "--clients=2", "--cohort=all", "--rounds=1", "--workers=1", "--tokens=32", "--head=zero",
         "--local-work=steps(1)", "--peft=lora(rank=2, layers=1)", "--dtype=fp32"]  # fmt: skip
SECRET = "what only its owner may read"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert simulate([*QUICK, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """Return a copy of the run, as if it came from another machine."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o600)
    return file


def published(folder: Path) -> str:
    """Return all that lies in an export, as text."""
    files = [Path(top, name) for top, _, names in os.walk(folder, followlinks=True) for name in names]
    return "".join(file.read_bytes().decode(errors="replace") for file in files)


@pytest.mark.parametrize("name", [*saved_adapter.FILES, "notes.txt", "more/notes.txt"])
def test_a_link_in_the_adapter_is_refused(name, run, secret, tmp_path, capfd):
    link = run / "adapter" / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    assert export([str(run), "--output", str(tmp_path / "out")]) == 2
    assert has_error(capfd.readouterr().err, "FP5250", name)
    assert SECRET not in published(tmp_path / "out")


@pytest.mark.parametrize("name", ["adapter", "config.toml", "summary.json"])
@pytest.mark.parametrize("more", [[], ["--merge"], ["--client", "0"]])
def test_a_link_in_place_of_the_run_s_own_files_is_refused(name, more, run, tmp_path, capfd):
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    assert export([str(run), *more, "--output", str(tmp_path / "out")]) == 2
    assert has_error(capfd.readouterr().err, "FP5250", name)
    assert not (tmp_path / "out").exists()


def test_files_of_another_name_are_not_published(run, secret, tmp_path):
    (run / "adapter" / "more").mkdir()
    for name in ("notes.txt", "more/notes.txt", "model.safetensors.bak"):
        os.link(secret, run / "adapter" / name)  # a hard link is the file itself
    assert export([str(run), "--output", str(tmp_path / "out")]) == 0
    assert SECRET not in published(tmp_path / "out")
    names = {file.name for file in (tmp_path / "out" / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "labels.json"}


def test_a_pipe_is_not_waited_for(run, tmp_path, capfd):
    (run / "adapter" / "method.json").unlink(missing_ok=True)
    os.mkfifo(run / "adapter" / "method.json")
    assert export([str(run), "--output", str(tmp_path / "out")]) == 2
    assert has_error(capfd.readouterr().err, "FP5102", "[Errno 22]", "method.json")


def test_a_run_is_exported_through_a_link_to_its_folder(run, tmp_path):
    (tmp_path / "latest").symlink_to(run)
    assert export([str(tmp_path / "latest"), "--output", str(tmp_path / "out")]) == 0
    before, after = (load_file(top / "adapter" / "adapter_model.safetensors") for top in (run, tmp_path / "out"))
    assert {name: tensor.tolist() for name, tensor in before.items()} == {n: t.tolist() for n, t in after.items()}


def test_a_link_that_appears_after_the_check_is_not_followed(run, secret, tmp_path):
    (tmp_path / "link").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        copy(tmp_path / "link", tmp_path / "copied")
    assert not (tmp_path / "copied").exists()
    (run / "adapter" / "labels.json").unlink()
    (run / "adapter" / "labels.json").symlink_to(secret)
    with refuses("FP5102", tmp_path / "out", "[Errno 40]", "labels.json"):
        saved_adapter.copy(run / "adapter", tmp_path / "out")


def test_names_of_classes_lead_out_of_no_folder(run, tmp_path):
    labels = json.loads((run / "adapter" / "labels.json").read_text())
    (run / "adapter" / "labels.json").write_text(json.dumps(["../../escaped", "/escaped", *labels[2:]]))
    assert export([str(run), "--output", str(tmp_path / "a" / "b" / "out")]) == 0
    assert not list(tmp_path.rglob("escaped*"))


def test_answers_are_not_written_through_a_link(run, secret, tmp_path):
    (tmp_path / "rows.csv").write_text("text\nkalep kamir\n")
    (tmp_path / "answers.csv.part").symlink_to(secret)
    words = ["--data", str(tmp_path / "rows.csv"), "--text", "text", "--output", str(tmp_path / "answers.csv")]
    assert predict([str(run), *words]) == 0
    assert secret.read_text() == SECRET
    assert (tmp_path / "answers.csv").read_text().startswith("text,predicted")

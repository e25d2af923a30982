"""What finished runs on pictures say of new ones: by their files, and of a folder or a table."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fedpeft.commands.predict import main as predict
from fedpeft.data.rows import join_rows, load_dataset
from fedpeft.evaluate import answered_rows
from fedpeft.reporting.finished_run import FinishedRun
from tests.refusals import has_error

SETTINGS = {"model": "tiny_vision", "clients": 2, "cohort": "all", "rounds": 1, "partition": "iid",
            "local_work": "steps(1)", "batch_size": 4, "dtype": "fp32"}  # fmt: skip
METHODS = ("lora(rank=2)", "head2toe", "full")


def draw(folder, count=10, seed=0):
    """Red and blue pictures, half of them wider than high."""
    random = np.random.default_rng(seed)
    for name, channel in (("blue", 2), ("red", 0)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 90, (40, 40 + 20 * (i % 2), 3)) + random.integers(0, 140, 3)
            pixels[..., channel] += 25
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("drawn") / "pictures")


@pytest.fixture(scope="module")
def runs(pictures, finished_run, tmp_path_factory):
    """Return a finished run on images for each method, and one on texts."""
    rows = tmp_path_factory.mktemp("texts") / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"{'good' if i % 2 else 'bad'} thing {i},{i % 2}\n" for i in range(30)))
    data = f"file(path={str(pictures)!r}, side=32)"
    made = {method: finished_run(**SETTINGS, dataset=data, peft=method) for method in METHODS}
    given = {"model": "tiny", "tokens": 8, "dataset": f"file:{rows}"}
    return made | {"text": finished_run(**SETTINGS | given)}


def said(capfd):
    return capfd.readouterr().out.strip().splitlines()


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_is_answered_as_in_the_run_s_own_rows(method, runs, pictures, capfd):
    run = FinishedRun.read(runs[method])
    file = pictures / "red" / "3.png"
    capfd.readouterr()
    assert predict([str(run.folder), str(file)]) == 0
    [line] = said(capfd)
    dataset = load_dataset(run.config.dataset)
    own = run.task.tokenise(join_rows(dataset.train, dataset.test), run.model_directory, 0)
    [pixels] = run.load_pictures([str(file)]).pixels
    [place] = [i for i in range(len(own)) if np.array_equal(own.pixels[i], pixels)]  # to the last bit
    batch, model = {"pixel_values": own.batch([place])["pixel_values"]}, run.model(run.base())
    with torch.no_grad():
        chances = (model(batch)[0].double() / run.temperature).softmax(-1)
    assert line == f"{run.labels[int(chances.argmax())]} ({float(chances.max()):.3f})"


def test_several_runs_answer_several_pictures(runs, pictures, capfd):
    folders = [str(runs[method]) for method in METHODS]
    files = [str(pictures / name / "0.png") for name in ("red", "blue")]
    alone = []
    for folder in folders:
        for file in files:
            capfd.readouterr()
            assert predict([folder, file]) == 0
            alone += [f"{folder}: {file}: {line}" for line in said(capfd)]
    assert predict([*folders, *files]) == 0
    assert said(capfd) == alone
    assert predict([folders[0], *files]) == 0
    assert said(capfd) == [line.split(": ", 1)[1] for line in alone[:2]]
    assert predict([*folders[:2], files[0], "--ensemble"]) == 0
    assert re.fullmatch(r"2 runs together: (red|blue) \([01]\.\d+\)", said(capfd)[0])
    assert predict([folders[0], files[0], "--abstain", "1"]) == 0
    assert said(capfd)[0].startswith("no answer: ")


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_a_table_and_loose_pictures_are_answered(method, runs, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(answered_rows, "PICTURES_AT_ONCE", 3)
    run = runs[method]
    new = draw(tmp_path / "new", 4, seed=1)
    loose = tmp_path / "loose"
    loose.mkdir()
    for i in range(4):
        (loose / f"{i}.png").write_bytes((new / "red" / f"{i}.png").read_bytes())
    (new / "metadata.csv").write_text("file_name,who\nred/1.png,a\nblue/0.png,b\n")
    found = {}
    for name, source in (("table", new), ("named", new / "metadata.csv"), ("loose", loose)):
        output = tmp_path / f"{name}.csv"
        assert predict([str(run), "--data", str(source), "--output", str(output)]) == 0
        with output.open(newline="") as stream:
            found[name] = list(csv.DictReader(stream))
    (new / "metadata.csv").unlink()
    assert predict([str(run), "--data", str(new), "--output", str(tmp_path / "classes.csv")]) == 0
    with (tmp_path / "classes.csv").open(newline="") as stream:
        found["classes"] = list(csv.DictReader(stream))
    assert found["table"] == found["named"]
    assert [line["who"] for line in found["table"]] == ["a", "b"]
    assert [line["label"] for line in found["classes"]] == ["blue"] * 4 + ["red"] * 4
    assert len(found["loose"]) == 4
    chance = {line["file_name"]: (line["predicted"], line["probability"]) for line in found["classes"]}
    by_table = {line["file_name"]: (line["predicted"], line["probability"]) for line in found["table"]}
    assert by_table.items() <= chance.items()
    capfd.readouterr()
    for line in found["classes"][:2]:
        assert predict([str(run), line["file_name"]]) == 0
        word, number = said(capfd)[0].rstrip(")").split(" (")
        assert (word, float(number)) == (line["predicted"], pytest.approx(float(line["probability"]), abs=6e-4))


def test_what_is_no_picture_is_one_sentence(runs, pictures, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(FinishedRun, "base", lambda run: pytest.fail("the model was loaded"))
    run, text, good = str(runs[METHODS[0]]), str(runs["text"]), str(pictures / "red" / "0.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost.csv").write_text("file_name\nnowhere.png\n")
    (tmp_path / "texts.csv").write_text("text\na\n")
    output = ["--output", str(tmp_path / "answers.csv")]
    for words, expected in (
        ([run, "a lovely film"], ("FP1272", "'a lovely film'")),
        ([run, "long " * 2000], ("FP1272", "'long long")),
        ([run, str(tmp_path / "bad.png")], ("FP3059", "bad.png")),
        ([run, good, str(tmp_path / "bad.png")], ("FP3059", "bad.png")),
        ([run, good, "nowhere.png"], ("FP1272", "'nowhere.png'")),
        ([run, str(tmp_path / "empty")], ("FP1271", "empty")),
        ([text, good], ("FP1270", "0.png")),
        ([run, text, good], ("FP1270", "0.png")),
        ([run, "--data", str(tmp_path / "empty"), *output], ("FP3056", "empty")),
        ([run, "--data", str(tmp_path / "gone"), *output], ("FP3055", "gone")),
        ([run, "--data", str(tmp_path / "lost.csv"), *output], ("FP3057", 1, 1, "nowhere.png")),
        ([run, "--data", str(tmp_path / "texts.csv"), *output], ("FP3052", "texts.csv", "'file_name'")),
        ([run, "--data", str(pictures), "--text", "body", *output], ("FP1159", "--text")),
        ([text, "--data", str(pictures), *output], ("FP1158", "pictures")),
    ):
        capfd.readouterr()
        assert predict(words) == 2, words
        heard = capfd.readouterr()
        assert has_error(heard.err, *expected), heard.err
        assert "Traceback" not in heard.err
        assert not heard.out.strip()
        assert not (tmp_path / "answers.csv").exists()

"""fedpeft check: what is said of data, and with which exit code."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise

import numpy as np
import pytest

from fedpeft.commands.check import main
from fedpeft.data.made_words import WORDS
from fedpeft.reporting.partition_plot import compute_bin_edges
from tests.described_images import draw_described
from tests.refusals import has_error


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path, extra=()):
    made = [{"text": " ".join(WORDS[i : i + 9]), "label": "ab"[i % 2], "who": f"p{i % 3}"} for i in range(90)]
    path.write_text("".join(json.dumps(r) + "\n" for r in (*made, *extra)))
    return path


def test_good_rows_are_shown_with_a_picture(here, capsys):
    rows(here / "my.jsonl")
    given = ["my.jsonl", "--model", "tiny", "--clients", "4", "--partition", "iid"]
    assert main([*given, "--picture", "check.svg"]) == 0
    out = capsys.readouterr().out
    assert "iid: 4 clients" in out
    assert "nothing was found" in out
    assert 'fedpeft simulate --dataset "file(path=\'my.jsonl\')" --partition "iid" --clients 4' in out
    picture = (here / "check.svg").read_text()
    assert picture.count("<svg") == 1
    main([*given, "--picture", "again.svg"])
    assert (here / "again.svg").read_text() == picture


def test_no_place_for_the_legend_is_searched_for(here, monkeypatch):
    """On a busy machine matplotlib warned the user that its search was slow; clients are drawn by their rows."""
    rows(here / "my.jsonl")
    monkeypatch.setattr("matplotlib.legend.Legend._find_best_position", lambda *_, **__: pytest.fail("a search"))
    given = ["my.jsonl", "--model", "tiny", "--clients", "4", "--partition", "iid"]
    assert main([*given, "--picture", "check.svg"]) == 0


def test_no_picture_is_drawn_that_nobody_asked_for(here):
    rows(here / "my.jsonl")
    assert main(["my.jsonl", "--model", "tiny", "--clients", "4", "--partition", "iid"]) == 0
    assert [file.name for file in here.iterdir()] == ["my.jsonl"]


def proposed(out):
    """Return the flags of the run in the last line."""
    words = shlex.split(out.split("a run ")[1])[2:]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_a_run_is_proposed_whose_clients_have_nothing_wrong(here, capsys):
    """By default some of so many clients have next to no rows; what is proposed has none of these faults."""
    rows(here / "my.jsonl")
    assert main(["my.jsonl", "--model", "tiny", "--clients", "6"]) == 1
    out = capsys.readouterr().out
    assert "clients have fewer than 10 examples" in out
    flags = proposed(out)
    assert flags["--partition"] == "iid"
    assert main([flags["--dataset"], "--model", "tiny", "--partition", "iid", "--clients", flags["--clients"]]) == 0
    assert proposed(capsys.readouterr().out) == flags


def test_clients_that_the_user_names_stay_as_they_are(here, capsys):
    rows(here / "my.jsonl")
    assert main(["my.jsonl", "--model", "tiny", "--clients", "6", "--partition", "dirichlet(alpha=0.5)"]) == 1
    assert proposed(capsys.readouterr().out)["--partition"] == "dirichlet(alpha=0.5)"


def test_of_many_clients_a_run_asks_some(here, capsys):
    rows(here / "my.jsonl")
    main(["my.jsonl", "--model", "tiny", "--clients", "30", "--partition", "iid"])
    assert proposed(capsys.readouterr().out)["--cohort"] == "10"


def test_what_is_wrong_is_exit_code_1(here, capsys):
    path = rows(here / "my.jsonl", [{"text": " ".join(WORDS[:9]), "label": "b", "who": "p0"}] * 9)
    text = f"file(path={str(path)!r}, owner=who)"
    assert main([text, "--model", "tiny", "--tokens", "8"]) == 1
    out = capsys.readouterr().out
    assert "natural: 3 clients" in out
    for words in ("training examples are duplicates", "another class than an equal example", "longer than 8 tokens"):
        assert words in out
    assert "--clients 0" in out


def test_rows_with_several_labels_lie_with_their_owners_where_they_have_some(here, capsys):
    path = rows(here / "my.jsonl")
    made = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"label": [row["label"]]}) + "\n" for row in made))
    main([f"file(path={str(path)!r}, label_type=labels, owner=who)", "--model", "tiny"])
    assert "natural: 3 clients" in capsys.readouterr().out
    main([f"file(path={str(path)!r}, label_type=labels)", "--model", "tiny"])
    assert "iid: " in capsys.readouterr().out


def test_few_clients_have_whole_numbers_below_them():
    from matplotlib.figure import Figure

    from fedpeft.data.partition import Partition
    from fedpeft.data.rows import Rows
    from fedpeft.reporting.partition_plot import _plot_clients

    axis = Figure(figsize=(4.5, 3.4)).subplots()
    rows = Rows(["a"] * 8, np.arange(8) % 2)
    _plot_clients(axis, Partition.from_shards([np.arange(k, 8, 4) for k in range(4)]), rows, ("no", "yes"))
    assert all(float(tick).is_integer() for tick in axis.get_xticks())
    assert axis.get_ylim()[1] > 2 * 1.1, "bars leave the legend its room"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such.csv"], ("FP3012", "no/such.csv")),
        (["nowhere"], ("FP1231", "dataset 'nowhere")),
        (["my.jsonl", "--picture", "a.txt"], ("FP1044", "--picture a.txt", ".svg")),
        (["my.jsonl", "--clients", "-1"], ("FP1227", "clients", "-1")),
        (["my.jsonl", "--seed", "-1"], ("FP1227", "seed", "-1")),
        (["my.jsonl", "--model", "tiny", "--clients", "900"], ("FP3087", "900")),
        (["my.jsonl", "--partition", "natural", "--model", "tiny"], ("FP3092",)),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, here, capsys):
    rows(here / "my.jsonl")
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert has_error(err, *words)
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["it's $HOME.jsonl", 'a "b".jsonl', "my.jsonl"])
def test_the_run_that_is_named_is_of_what_was_looked_at(name, here, capsys):
    rows(here / name)
    partition = "dirichlet(alpha=0.5)"
    main([name, "--model", "tiny", "--tokens", "64", "--clients", "4", "--seed", "3", "--partition", partition])
    line = capsys.readouterr().out.split("a run ")[1]
    words = shlex.split(line)[2:]
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--dataset": f"file(path={name!r})",
        "--partition": partition,
        "--clients": "4",
        "--cohort": "all",
        "--model": "tiny",
        "--tokens": "64",
        "--seed": "3",
    }


@pytest.mark.parametrize(("low", "high", "reach"), [(8, 12, 128), (1, 61, 32), (5, 5, 0), (3, 4000, 128)])
def test_bars_of_lengths_hold_equally_many_numbers(low, high, reach):
    found = compute_bin_edges(np.array([low, high]), reach)
    assert len(found) <= 42
    assert found[0] < low <= high < found[-1]
    assert len({sum(a < n < b for n in range(low, 2 * high + 9)) for a, b in pairwise(found)}) == 1
    assert found[1] - found[0] >= (max(high, reach) - low) / 40


def test_a_row_whose_answer_is_cut_off_is_found_before_a_run_refuses_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"{WORDS[i % 9]} {i}", "output": WORDS[i % 7]} for i in range(40)]
    rows += [{"instruction": " ".join(WORDS[:9] * 40), "output": WORDS[0]}] * 9
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["a.jsonl", "--model", "tiny_lm", "--clients", "2"]) == 1
    assert "conversations have no answer within --tokens 128; give more than 3" in capsys.readouterr().out


def test_masks_are_shown_by_their_pixels(here, capsys):
    draw_described(here / "photos", 12)
    data = "file(path=photos, task=patch_labels, labels='ground,square', side=16)"
    main([data, "--clients", "2", "--partition", "iid"])
    out = capsys.readouterr().out
    assert "image, patch labels" in out
    assert ["test", "2", str(2 * 192), str(2 * 64)] in [re.findall(r"\w+", line) for line in out.splitlines()]

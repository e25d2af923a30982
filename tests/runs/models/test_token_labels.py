"""Labels of words: rows, alignment with tokens, losses, spans; and both executors on the same rows."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn import functional

from fedpeft.commands import export, predict
from fedpeft.data import cached_rows
from fedpeft.data.datasets.code_names import LABELS, build_row
from fedpeft.data.examples import TaggedRows
from fedpeft.data.rows import Dataset, Rows
from fedpeft.data.tagged_words import IGNORED, check_tags, parse_row
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.evaluate import __main__ as evaluate
from fedpeft.models.base_model import resolve_model
from fedpeft.models.quantized_base import QuantizedLinear
from fedpeft.models.tasks.token_labels import align_tags
from fedpeft.parts import plugins
from fedpeft.parts.families import TASKS
from fedpeft.reporting.console import ConsoleObserver
from fedpeft.simulate import main
from fedpeft.simulation.simulation import Simulation
from fedpeft.simulation.span_scores import compute_span_scores, is_iob2, measure_spans
from fedpeft.wiring.config import RunConfig
from tests.executors import check_executors_agree
from tests.refusals import has_error, pattern_of, refuses

SOURCE = """def scaled(values, by=2):
    total = values.copy().times(by=by)
    for value in self.all.values:
        total += len(value)
    return total"""

TINY = {"dataset": "made_names", "tokens": 32, "clients": 3, "cohort": "all", "rounds": 2, "workers": 1, "seed": 3,
        "dtype": "fp64", "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "learning_rate": 3e-3,
        "model": "tiny", "head": "zero", "partition": "iid"}  # fmt: skip

PLUGIN = """
import json
import numpy as np
from dataclasses import dataclass
from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import Dataset, Rows

@dataclass(frozen=True)
class MadeNames:
    \"\"\"Made words, of which each third is a name.\"\"\"
    def load(self):
        draw = np.random.default_rng(0)
        def rows(count):
            made = []
            for _ in range(count):
                words = draw.integers(len(WORDS), size=int(draw.integers(4, 12)))
                made.append(json.dumps({"words": [WORDS[w] for w in words], "tags": [int(w % 3 == 0) for w in words]}))
            return Rows(made)
        return Dataset("made_names", "text", "token_labels", rows(120), rows(40), ("O", "B-NAME"), "tiny")

parts = {"datasets": {"made_names": MadeNames}}
"""


def tagged(text: str) -> list[tuple[str, str]]:
    row = json.loads(build_row(text))
    return [(word, LABELS[tag]) for word, tag in zip(row["words"], row["tags"], strict=True)]


@pytest.mark.fast
def test_what_the_names_in_a_function_are():
    found = tagged(SOURCE)
    assert found[:8] == [("def", "O"), ("scaled", "B-FUN"), ("(", "O"), ("values", "B-ARG"), (",", "O"),
                         ("by", "B-ARG"), ("=", "O"), ("2", "O")]  # fmt: skip
    start = [word for word, _ in found].index("total")
    assert found[start : start + 16] == [
        ("total", "B-VAR"), ("=", "O"), ("values", "B-ARG"), (".", "O"), ("copy", "B-ATT"), ("(", "O"), (")", "O"),
        (".", "O"), ("times", "B-ATT"), ("(", "O"), ("by", "B-KEY"), ("=", "O"), ("by", "B-ARG"), (")", "O"),
        ("for", "O"), ("value", "B-VAR")]  # fmt: skip
    chain = [word for word, _ in found].index("self")
    assert found[chain : chain + 5] == [("self", "O"), (".", "O"), ("all", "B-ATT"), (".", "I-ATT"),
                                        ("values", "I-ATT")]  # fmt: skip
    assert ("len", "O") in found
    inner = tagged("def f(a):\n    def g(b):\n        return a + b\n    return lambda c: g(c)")
    assert [pair for pair in inner if pair[0] in "abc" and len(pair[0]) == 1] == [
        ("a", "B-ARG"), ("b", "B-ARG"), ("a", "B-ARG"), ("b", "B-ARG"), ("c", "B-ARG"), ("c", "B-ARG")]  # fmt: skip
    assert build_row("def f(a):\n    return f'{a}'") is None
    assert build_row("def f(:") is None


@pytest.mark.fast
def test_the_first_token_of_a_word_bears_its_label():
    assert align_tags([None, 0, 0, 1, 2, 2, None], [4, 5, 6]).tolist() == [IGNORED, 4, IGNORED, 5, 6, IGNORED, IGNORED]
    task, folder = TASKS.build("token_labels"), resolve_model("tiny")
    words = ["zq", "abcdefghijkl", "x"]
    rows = Rows([json.dumps({"words": words, "tags": [1, 0, 1]}), json.dumps({"words": ["a"] * 40, "tags": [1] * 40})])
    made = task.tokenise(rows, folder, 16)
    assert isinstance(made, TaggedRows)
    first = made.tags[: made.offsets[1]]
    assert first[first != IGNORED].tolist() == [1, 0, 1]
    assert made.lengths.max() <= 16, "what is cut off is not asked"
    batch = made.batch([0, 1])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    again = cached_rows.restore_examples(cached_rows.convert_to_arrays(made))
    assert torch.equal(again.batch([1, 0])["labels"], made.batch([1, 0])["labels"])


@pytest.mark.fast
@pytest.mark.parametrize(
    "row", ["no json", '{"words": ["a"]}', '{"words": ["a"], "tags": [1, 2]}', '{"words": [], "tags": []}']
)
def test_rows_of_another_kind_are_refused(row):
    with refuses("FP3147"):
        TASKS.build("token_labels").tokenise(Rows([row]), resolve_model("tiny"), 16)


@pytest.mark.fast
@pytest.mark.parametrize("tag", [2, -1])
def test_a_tag_that_no_label_name_has_is_refused_before_a_run(tag, fresh_plugins, tmp_path):
    file = tmp_path / "made_names.py"
    file.write_text(PLUGIN.replace("int(w % 3 == 0)", f"{tag} * int(w % 3 == 0)"))
    plugins.use([str(file)])
    with refuses("FP3149", "the training examples of made_names", f"the tag {tag}", "0 to 1"):
        simulation(tmp_path / "run")
    check_tags([json.dumps({"words": ["a", "b"], "tags": [1, IGNORED]})], ("O", "B-NAME"), "rows")


@pytest.mark.fast
@pytest.mark.parametrize("row", ['{"words": ["a"], "tags": [Infinity]}', "[" * 100_000])
def test_json_that_holds_no_tags_is_one_sentence(row):
    with refuses("FP3147"):
        parse_row(row)


@pytest.mark.fast
def test_tags_without_names_of_them_are_one_sentence():
    with refuses("FP3148", "the training rows of mine"):
        check_tags(['{"words": ["a"], "tags": [0]}'], (), "the training rows of mine")


@pytest.mark.fast
def test_losses_are_of_labelled_tokens_alone():
    task = TASKS.build("token_labels")
    logits, labels = torch.randn(2, 5, 3), torch.tensor([[IGNORED, 2, 0, IGNORED, 1], [1, IGNORED, 1, 1, 1]])
    found = task.losses(logits, {"labels": labels})
    for b in range(2):
        kept = labels[b] != IGNORED
        slow = sum(-functional.log_softmax(logits[b, t], -1)[labels[b, t]] for t in range(5) if kept[t])
        assert torch.allclose(found.sums[b], slow)
        assert found.counts[b] == kept.sum()
        assert found.correct[b] == sum(int(logits[b, t].argmax() == labels[b, t]) for t in range(5) if kept[t])


@pytest.mark.fast
def test_spans_count_whole(monkeypatch):
    right = [["B-ATT", "I-ATT", "O", "B-ARG"], ["B-ARG", "O", "O", "B-ARG"]]
    said = [["B-ATT", "O", "O", "B-ARG"], ["B-ARG", "O", "B-ATT", "O"]]
    found = compute_span_scores(right, said)
    # of 4 spans 2 are found; 4 are said
    assert found["precision"] == pytest.approx(2 / 4)
    assert found["recall"] == pytest.approx(2 / 4)
    assert found["f1"] == pytest.approx(1 / 2)
    assert found["by_type"] == {"ARG": pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3)), "ATT": 0.0}
    monkeypatch.setitem(sys.modules, "seqeval", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refuses("FP2008", "seqeval", "evaluate"):
        compute_span_scores(right, said)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("names", "are"),
    [
        (("O", "B-A", "I-A"), True),
        (("0", "1"), False),
        (("O", "NAME"), False),
        (("O", "B-"), False),
        (("O", "S-A"), False),
    ],
)
def test_labels_that_name_no_spans_are_not_scored_as_such(names, are):
    assert is_iob2(names) == are


def simulation(folder, **given) -> Simulation:
    return Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(Console(quiet=True)))


@pytest.fixture
def made_names(tmp_path, fresh_plugins):
    (tmp_path / "made_names.py").write_text(PLUGIN)
    plugins.use([str(tmp_path / "made_names.py")])
    return tmp_path / "made_names.py"


def test_executors_agree(made_names, tmp_path):
    check_executors_agree(simulation, tmp_path)


@pytest.mark.fast
def test_label_shift_is_refused_by_the_rows_own_name(made_names, tmp_path):
    with refuses("FP1341", "examples of token_labels have none"):
        simulation(tmp_path / "run", drift="label_shift")


@pytest.mark.fast
@pytest.mark.parametrize("bits", [4, 8])
def test_spans_are_those_of_the_base_that_was_trained_on(bits, made_names, tmp_path, monkeypatch):
    made = simulation(tmp_path / "run", peft=f"qlora(rank=2, layers=1, bits={bits})", dtype="fp32")
    read = []

    class EnoughError(Exception):
        """The base is known."""

    def load(folder, task, base, classes):
        read.append(base)
        raise EnoughError

    monkeypatch.setattr("fedpeft.peft.saved_adapter.load", load)
    with pytest.raises(EnoughError):
        measure_spans(made)
    made.close()
    assert {m.precision for m in read[0].modules() if isinstance(m, QuantizedLinear)} == {
        "nf4" if bits == 4 else "int8"
    }


@pytest.mark.slow
def test_a_run_tells_spans(made_names, tmp_path, capsys):
    run = tmp_path / "run"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "dtype": "fp32"}.items()]
    assert main([*words, "--plugin", str(made_names), "--output", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metric"] == "accuracy"
    assert 0 < summary["accuracy"] <= 1
    assert set(summary["spans"]) == {"precision", "recall", "f1", "by_type"}
    counts = np.load(run / "predictions.npz")["count"]
    assert counts.max() > 1, "of words, not of rows"
    capsys.readouterr()
    assert export.main([str(run), "--merge"]) == 2
    assert has_error(capsys.readouterr().err, "FP5174"), "and is not written as a classifier of rows"
    assert predict.main([str(run), "a text"]) == 0
    words, labels = zip(*(word.split("/") for word in capsys.readouterr().out.split()), strict=True)
    assert (words, set(labels) <= {"O", "B-NAME"}) == (("a", "text"), True)
    assert predict.main([str(run), "a text", "--abstain", "0.5"]) == 2
    assert has_error(capsys.readouterr().err, "FP1505", "--abstain")
    assert evaluate.main([str(run)]) == 0
    evaluated = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert evaluated["measures"]["global"]["accuracy"] == pytest.approx(summary["accuracy"])


@pytest.mark.fast
def test_what_does_not_go_with_labels_of_words_is_refused(made_names, tmp_path):
    for given, error, words in (
        ({"head": "ridge"}, ConfigError, ("FP1352", "--head")),
        ({"privacy": "dp_sgd(epsilon=8)"}, PrivacyError, ("FP7090",)),
        ({"measure": "calibration"}, ConfigError, ("FP1311",)),
        ({"measure": "forgetting(dataset=tiny)"}, ConfigError, ("FP1408",)),
        ({"dataset": "tasks(made_names, made_names)"}, ConfigError, ("FP1100",)),
    ):
        with pytest.raises(error, match=pattern_of(*words)):
            simulation(tmp_path / "x", **given)


@pytest.mark.fast
def test_a_data_set_says_how_it_lies_and_how_its_head_starts():
    from fedpeft.wiring.auto_defaults import resolve_auto
    from fedpeft.wiring.run_spec import parse_run

    config = resolve_auto(parse_run(RunConfig(dataset="sample(of=code_names, rows=100)", peft="lora"))).config
    assert (config.partition, config.head) == ("natural", "zero")
    assert Dataset("d", "text", "token_labels", Rows(["a"]), Rows(["a"]), LABELS, "minilm").classes == len(LABELS)

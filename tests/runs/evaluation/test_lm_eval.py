"""Tasks of lm-eval on a finished run: what its own Hugging Face model finds, and mistakes."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from fedpeft.data.made_words import WORDS
from fedpeft.evaluate.__main__ import main
from fedpeft.evaluate.lm_eval import EvaluatedModel
from fedpeft.reporting.finished_run import FinishedRun
from tests.refusals import has_error

CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} "
doc_to_target: right
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
FREE = """
task: free
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["{stop}"], max_gen_toks: {most}{more}}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{{metric: word_perplexity}}]
"""
TEXTS = {"choice": CHOICE, "free": FREE, "rolling": ROLLING}


@pytest.fixture
def run(finished_run):
    """Return a finished run whose model continues texts and has learned something."""
    return finished_run(
        dataset="tiny_lm(owners=3, rows=12)", model="tiny_lm", clients=3, cohort=3, rounds=1, local_work="steps(8)",
        partition="iid", dtype="fp32", peft="lora(layers=0)", learning_rate=0.05, measure="validation(keep=last)",
        safeguard="none",
    )  # fmt: skip


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """YAML files of own tasks, by name; data sets are kept in the test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = tmp_path / "rows.jsonl"
    made = []
    for i in range(11):
        choices = [WORDS[i], " ".join(WORDS[i + 1 : i + 3 + i % 3])]
        long = " ".join(WORDS[j % 60] for j in range(i, i + 12 * (i + 1)))  # some are longer than the model reads
        made.append({"question": " ".join(WORDS[i : i + 1 + i % 4]), "choices": choices, "right": i % 2, "text": long})
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))

    def task(name, **more):
        file = tmp_path / f"{name}.yaml"
        file.write_text(TEXTS[name].format(rows=rows, **{"stop": WORDS[7], "more": "", "most": 9} | more))
        return str(file)

    return task


@pytest.mark.slow
def test_measures_and_answers_are_those_of_lm_evals_own_model(run, tasks, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    files = [tasks(name) for name in TEXTS]
    assert main([str(run), "--lm-eval", ",".join(files), "--output", str(tmp_path / "out")]) == 0
    ours = json.loads((tmp_path / "out" / "evaluation.json").read_text())["measures"]
    said = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    finished = FinishedRun.read(run)
    tokenizer, model = AutoTokenizer.from_pretrained(finished.model_directory), finished.model(finished.base())
    theirs = simple_evaluate(
        HFLM(pretrained=model.base, tokenizer=tokenizer, batch_size=4, max_length=63),  # ours counts the last token
        tasks=files, task_manager=TaskManager(include_defaults=False), bootstrap_iters=0,
    )  # fmt: skip
    expected = {
        "choice acc": theirs["results"]["choice"]["acc,none"],
        "choice acc_norm": theirs["results"]["choice"]["acc_norm,none"],
        "free exact_match": theirs["results"]["free"]["exact_match,none"],
        "rolling word_perplexity": theirs["results"]["rolling"]["word_perplexity,none"],
    }
    assert ours["global"] == pytest.approx(expected, rel=1e-6)
    assert ours["base"]["rolling word_perplexity"] != pytest.approx(expected["rolling word_perplexity"], rel=1e-5)
    texts = [sample["filtered_resps"][0] for sample in theirs["samples"]["free"]]
    assert any(texts)
    assert [one["said"]["global"] for one in said[11:22]] == [text.strip() for text in texts]
    for one, sample in zip(said, theirs["samples"]["choice"], strict=False):
        likelihoods = [float(chance) for chance, _ in sample["filtered_resps"]]
        assert one["said"]["global"].strip() == sample["doc"]["choices"][likelihoods[1] > likelihoods[0]]


@pytest.mark.slow
def test_tasks_that_cannot_be_done_are_one_sentence(run, tasks, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    for more, words in (
        ({"more": ", do_sample: true"}, ("FP1168",)),
        ({"most": 64}, ("FP1169",)),
        ({}, ("FP2010", "none.yaml")),
    ):
        file = tasks("free", **more) if more else str(tmp_path / "none.yaml")
        assert main([str(run), "--lm-eval", file, "--output", str(tmp_path / "out")]) == 2
        assert has_error(capsys.readouterr().err, *words)
        assert not (tmp_path / "out").exists()


def test_without_lm_eval_is_one_sentence(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert main([str(run), "--lm-eval=arc_easy", "--output", str(tmp_path / "out")]) == 2
    assert has_error(capsys.readouterr().err, "FP2009")
    assert main([str(run), "--lm-eval=arc_easy", "--questions=exam.jsonl"]) == 2
    assert has_error(capsys.readouterr().err, "FP1163", "--questions", "--flowertune")
    assert not (tmp_path / "out").exists()


def test_likelihoods_of_texts_that_are_longer_than_the_model_reads_keep_their_end(run, observer):
    """Without lm-eval: its two kinds of likelihoods are cut on the left, answers count alone."""
    finished = FinishedRun.read(run)
    tokenizer, model = AutoTokenizer.from_pretrained(finished.model_directory), finished.model(finished.base())
    answers = EvaluatedModel(model, tokenizer, 16, "global", observer)
    ids = tokenizer(" ".join(WORDS[:30]))["input_ids"]
    whole, cut = (answers._loglikelihood_tokens([("", ids[:-2][-k:], ids[-2:])])[0][0] for k in (28, 14))
    assert whole == pytest.approx(cut, abs=1e-6)
    assert whole != pytest.approx(answers._loglikelihood_tokens([("", ids[-10:-2], ids[-2:])])[0][0], abs=1e-6)

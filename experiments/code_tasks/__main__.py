"""python -m experiments.code_tasks: code review and clones, next to what needs no training of a model.

- majority: the most frequent class, or no defect anywhere
- words: a linear classifier on TF-IDF of the whole texts; for `where`, on each word and its neighbors
- probe: logistic regression on the frozen encoder's features, or a trained head on the frozen encoder for `where`
- adapter: the federation of the command in docs/code-tasks.md

Defects and clones are synthetic. Every number is a line of experiments/code_tasks/results.jsonl, and is measured once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fedpeft
from experiments import exit_on_error
from experiments.ladder.rungs import score_majority, score_probe, score_surface
from fedpeft.data.rows import Dataset, Rows, load_dataset
from fedpeft.data.tagged_words import parse_row

RESULTS = Path(__file__).parent / "results.jsonl"

TASKS = {
    "code_review(package_rows=60)": 64,
    "code_clones(package_rows=60, characters=200)": 128,
    "code_review(package_rows=60, where=True)": 64,
}
"""Datasets with their number of tokens."""

FEDERATION: dict[str, Any] = {
    "clients": 0,
    "cohort": 8,
    "rounds": 6,
    "batch_size": 16,
    "peft": "lora(layers=2)",
}


def measure(dataset: str, rung: str) -> dict[str, Any]:
    """Return the scores of one way to solve a task on its test examples."""
    data = load_dataset(dataset)
    if rung == "adapter" or (rung == "probe" and data.task == "token_labels"):
        given = FEDERATION | {"tokens": TASKS[dataset]} | ({"peft": "linear_probe"} if rung == "probe" else {})
        with tempfile.TemporaryDirectory() as folder:
            run = fedpeft.run_simulation(dataset=dataset, output=Path(folder) / "run", progress=False, **given)
            found = {"accuracy": run.accuracy, "seconds": round(run.summary["seconds"])}
            return found | ({"spans": run.summary["spans"]} if run.summary.get("spans") else {})
    if data.task == "token_labels":
        return score_words_alone(data) if rung == "words" else {"accuracy": 1 - share_of_defects(data.test), "f1": 0.0}
    if rung == "probe":
        return score_probe(dataset, {"tokens": TASKS[dataset]})
    return score_majority(data) if rung == "majority" else score_surface(data)


def share_of_defects(rows: Rows) -> float:
    """Return the share of words with a label."""
    tags = [tag for row in rows.inputs for tag in parse_row(row)[1]]
    return sum(tag != 0 for tag in tags) / len(tags)


def score_words_alone(data: Dataset) -> dict[str, Any]:
    """Score logistic regression on each word and its two neighbors on both sides."""
    from seqeval.metrics import f1_score
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression

    def describe(words: Sequence[str]) -> list[dict[str, str]]:
        padded = ["", "", *words, "", ""]
        return [{str(k): padded[place + k] for k in range(5)} for place in range(len(words))]

    train, test = ([parse_row(row) for row in rows.inputs] for rows in (data.train, data.test))
    vectors = DictVectorizer()
    model = LogisticRegression(max_iter=500, class_weight="balanced")
    model.fit(
        vectors.fit_transform([d for words, _ in train for d in describe(words)]), [t for _, s in train for t in s]
    )
    names = data.label_names or ()
    said = [[names[tag] for tag in model.predict(vectors.transform(describe(words)))] for words, _ in test]
    right = [[names[tag] for tag in tags] for _, tags in test]
    pairs = [(a, b) for one, other in zip(said, right, strict=True) for a, b in zip(one, other, strict=True)]
    return {"accuracy": sum(a == b for a, b in pairs) / len(pairs), "f1": float(f1_score(right, said))}


def main() -> None:
    """Measure what is missing, and print all lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rung", nargs="+", default=["majority", "words", "adapter", "probe"])
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    for dataset in arguments.dataset:
        for rung in arguments.rung:
            if not any((line["dataset"], line["rung"]) == (dataset, rung) for line in lines):
                lines.append({"dataset": dataset, "rung": rung} | measure(dataset, rung))
                with RESULTS.open("a", encoding="utf-8") as sink:
                    sink.write(json.dumps(lines[-1]) + "\n")
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    with exit_on_error():
        main()

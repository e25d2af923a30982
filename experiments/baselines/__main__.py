"""python -m experiments.baselines: frozen probes at several text lengths, and TF-IDF with logistic regression.

Prints test accuracy on 20 Newsgroups. Regularization is chosen on the validation examples that every run uses, so no
line depends on the test examples. A run reports the probe at its own text length, at least 128 tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from experiments import exit_on_error
from fedpeft.machine.terminal import Console
from fedpeft.reporting.console import ConsoleObserver, silence_libraries
from fedpeft.simulation.probe import choose_strength, run_base_probe
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig

TFIDF_STRENGTHS = (1.0, 3.0, 10.0, 30.0)
"""Candidates for scikit-learn's C on TF-IDF features."""


def score_tfidf(simulation: Simulation, tokens: int | None) -> tuple[float, float]:
    """Test accuracy of TF-IDF and logistic regression on the whole texts or their first `tokens` words, and its C."""

    def cut(texts: list[str]) -> list[str]:
        return texts if tokens is None else [" ".join(text.split()[:tokens]) for text in texts]

    rows, shared = simulation.rows.all, len(simulation.rows.train)
    assert rows.labels is not None
    test = simulation.rows.dataset.test
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    features = vectorizer.fit_transform(cut(list(rows.inputs)))
    held_out = vectorizer.transform(cut(list(test.inputs)))
    fitted = {
        strength: LogisticRegression(C=strength, max_iter=1000).fit(features[:shared], rows.labels[:shared])
        for strength in TFIDF_STRENGTHS
    }
    scores = {C: float(model.score(features[shared:], rows.labels[shared:])) for C, model in fitted.items()}
    strength = choose_strength(scores, len(rows.labels) - shared)
    return float(np.mean(fitted[strength].predict(held_out) == test.labels)), strength


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128, 256], help="text lengths of the probe")
    parser.add_argument("--dataset", default="20newsgroups")
    arguments = parser.parse_args()
    silence_libraries()
    console = Console()
    table = Table(title=f"{arguments.dataset}, test accuracy without federation")
    for column in ("method", "text", "C", "test accuracy"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as folder, ConsoleObserver(console) as observer:
        for tokens in arguments.tokens:
            config = dataclasses.replace(RunConfig(), dataset=arguments.dataset, tokens=tokens)
            simulation = Simulation(config, Path(folder), observer)
            probe = run_base_probe(simulation.setup, simulation.rows, simulation.workers, tokens)
            assert probe is not None
            table.add_row(
                "frozen encoder, linear probe", f"{tokens} tokens", f"{probe.strength:g}", f"{probe.accuracy:.4f}"
            )
            simulation.close()
        for words in (arguments.tokens[1] if len(arguments.tokens) > 1 else arguments.tokens[0], None):
            accuracy, strength = score_tfidf(simulation, words)
            label = "whole texts" if words is None else f"{words} words"
            table.add_row("TF-IDF, logistic regression", label, f"{strength:g}", f"{accuracy:.4f}")
    console.print(table)


if __name__ == "__main__":
    with exit_on_error():
        main()

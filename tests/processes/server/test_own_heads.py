"""Heads, and codecs, of one's own that are wrong: the sentence names them and what they did."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedpeft.rounds.acceptance import describe_rejection
from fedpeft.simulate import main as simulate
from tests.refusals import has_error

HEADS_OF_ONE_S_OWN = """
from dataclasses import dataclass

import numpy as np
import torch

from fedpeft.aggregation.heads.centroids import Centroids
from fedpeft.communication.payload import count_total
from fedpeft.communication.steps import Encoded, Plan, Quantizer
from fedpeft.communication.symbols import Expected, Symbols


@dataclass(frozen=True)
class Turned(Centroids):
    \"\"\"Its weight is transposed.\"\"\"

    def solve(self, count_total, width, classes):
        made = super().solve(count_total, width, classes)
        return made | {"head.weight": made["head.weight"].T}


@dataclass(frozen=True)
class Nan(Centroids):
    \"\"\"It has no numbers.\"\"\"

    def solve(self, count_total, width, classes):
        return {name: float("nan") * tensor for name, tensor in super().solve(count_total, width, classes).items()}


@dataclass(frozen=True)
class NoBias(Centroids):
    \"\"\"It leaves a part out.\"\"\"

    def solve(self, count_total, width, classes):
        return {"head.weight": super().solve(count_total, width, classes)["head.weight"]}


@dataclass(frozen=True)
class More(Centroids):
    \"\"\"It makes a tensor that no model has.\"\"\"

    def solve(self, count_total, width, classes):
        return super().solve(count_total, width, classes) | {"head.more": torch.ones(1)}


@dataclass(frozen=True)
class Other(Centroids):
    \"\"\"Its statistics are not what it says.\"\"\"

    def statistics(self, features, labels, classes):
        return super().statistics(features, labels, classes) | {"more": torch.ones(3)}


@dataclass(frozen=True)
class Infinite(Centroids):
    \"\"\"Its statistics are no numbers.\"\"\"

    def statistics(self, features, labels, classes):
        return {name: tensor / 0 for name, tensor in super().statistics(features, labels, classes).items()}


@dataclass(frozen=True)
class Huge(Centroids):
    \"\"\"Its statistics are none that rows can have.\"\"\"

    def statistics(self, features, labels, classes):
        return {name: 1e30 * tensor for name, tensor in super().statistics(features, labels, classes).items()}


@dataclass(frozen=True)
class Beyond(Quantizer):
    \"\"\"Its symbols lie beyond their alphabet.\"\"\"

    lossless = False

    def encode(self, signal, context):
        return Encoded(None, b"", (Symbols(np.full(len(signal.values), 300, np.uint16), 256),))

    @classmethod
    def plan(cls, parameters, shapes, context):
        return Plan((), (Expected(count_total(shapes), 256),), lambda values, symbols: symbols[0].astype(context.dtype))


parts = {
    "heads": {"turned": Turned, "nan": Nan, "no_bias": NoBias, "more": More, "other": Other, "infinite": Infinite,
              "huge": Huge},
    "codecs": {"beyond": Beyond},
}
"""


pytestmark = pytest.mark.usefixtures("fresh_plugins")


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "mine.py"
    made.write_text(HEADS_OF_ONE_S_OWN)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--head turned", ("FP1020", "turned", "head.weight", "(48, 4)", "(4, 48)")),
        ("--head nan", ("FP1021", "nan", "head.bias")),
        ("--head no_bias", ("FP1018", "no_bias", "head.bias")),
        ("--head more", ("FP1019", "more", "head.more")),
        ("--head other", ("FP1015", "other", "more", "(3,)", "none")),
        ("--head infinite", ("FP1017", "infinite", "counts")),
        ("--codec beyond", ("FP1068", "beyond", "0", "300", "256")),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained_with_it(file, tmp_path, capsys, given, says):
    run = ["--dataset", "tiny", "--model", "tiny", "--clients", "2", "--cohort", "all", "--rounds", "1"]
    run += ["--workers", "1", "--local-work", "steps(1)", "--plugin", str(file), "--output", str(tmp_path / "run")]
    assert simulate([*run, *given.split()]) == 2
    said = capsys.readouterr().err
    assert has_error(said, *says)
    assert "Traceback" not in said


@pytest.mark.medium
def test_why_no_client_counted_is_said_of_the_first(file, tmp_path, capsys):
    run = ["--dataset", "tiny", "--model", "tiny", "--clients", "2", "--cohort", "all", "--rounds", "1"]
    run += ["--workers", "1", "--plugin", str(file), "--output", str(tmp_path / "run"), "--head", "huge"]
    assert simulate(run) == 2
    assert has_error(capsys.readouterr().err, "FP5197", "2", "huge", "client 0")


@pytest.mark.fast
def test_a_stranger_s_reason_is_short_and_printable():
    said = describe_rejection("client 3", "\x1b[2Jno\nway" + "x" * 1000)
    assert said.startswith("client 3:  [2Jno way")
    assert len(said) < 220


@pytest.mark.slow
def test_the_suite_fails_each_of_them(file):
    words = [sys.executable, "-m", "fedpeft.conformance", str(file), "--select", "heads"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=300).stdout
    failed = [line for line in said.splitlines() if line.startswith("FAILED")]
    for name in ("turned", "nan", "no_bias", "more", "other", "infinite", "huge"):
        assert any(f"[{name}]" in line for line in failed), name

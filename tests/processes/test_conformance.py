"""The conformance suite on parts from outside that are not like our own."""

from __future__ import annotations

import subprocess
import sys

import pytest

NEEDS = '''
"""Parts that must be given something."""
from dataclasses import MISSING, dataclass
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.communication.steps import ByteStep
from fedpeft.parts import setting


@dataclass(frozen=True)
class Scaled(LinearStrategy):
    """A scaled mean."""

    arrives_whole = False
    share: float = setting(MISSING, "of each update", above=0)


@dataclass(frozen=True)
class Padded(ByteStep):
    """Zeros behind."""

    count: int = setting(MISSING, "bytes", low=1)

    def encode(self, data):
        return data + bytes(self.count)

    @classmethod
    def decode(cls, data, bound):
        return data[:-1]


parts = {"strategies": {"scaled": Scaled}, "codecs": {"padded": Padded}}
'''


@pytest.mark.medium
def test_parts_that_must_be_given_settings_are_skipped_where_they_would_have_to_be_made(tmp_path):
    (tmp_path / "needs.py").write_text(NEEDS)
    command = [sys.executable, "-m", "fedpeft.conformance", "needs.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout
    assert "passed" in ended.stdout
    assert "Warning" not in ended.stdout


FROM_FLOWER = '''
"""A subclass of Flower's FedAvg as a part."""
from flwr.serverapp.strategy import FedAvg
from fedpeft.flower.strategy import wrap_strategy


class Mine(FedAvg):
    """FedAvg by a name of one's own."""


parts = {"strategies": {"mine": wrap_strategy(Mine)}}
'''


@pytest.mark.medium
def test_a_wrapped_strategy_of_flower_s_does_what_every_strategy_must(tmp_path):
    (tmp_path / "mine.py").write_text(FROM_FLOWER)
    command = [sys.executable, "-m", "fedpeft.conformance", "mine.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout
    assert "passed" in ended.stdout

"""Lines of a run: nouns after numbers, and line ends between phrases."""

import io

import pytest
from rich.console import Console

from fedpeft.reporting.console import ConsoleObserver
from fedpeft.reporting.observer import RoundResult


@pytest.mark.medium
def test_a_round_of_one_client_says_so():
    console = Console(file=io.StringIO())
    with ConsoleObserver(console) as observer:
        observer.begin_rounds(1, 0)
        observer.round_done(RoundResult(1, 1, 0, 0.5, None, None, 1, 1, 1.0, 1.0, 1.0))
    assert "  1 client  " in console.file.getvalue()

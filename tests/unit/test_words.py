"""`.ci/words.py` finds what the rules of language forbid, and leaves code and formulas alone."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def words():
    """Yield the module `.ci/words.py`."""
    pytest.importorskip("textstat", reason="is in the extra dev")
    spec = importlib.util.spec_from_file_location("language_rules", ROOT / ".ci" / "words.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def find_rules(words, text: str) -> list[str]:
    return [finding.rule for finding in words.check_page("docs/page.md", text)]


def test_a_plain_page_has_no_findings(words) -> None:
    page = (
        "# Title\n\nThe server averages the updates. Each client trains its adapter.\n\n- One item.\n- Another item.\n"
    )
    assert find_rules(words, page) == []


@pytest.mark.parametrize("place", ["{}.", "- {}.", "> {}.", "1. {}.", "| a | {} |", "## {}"])
def test_a_long_sentence_is_found_in_each_place_of_a_page(words, place: str) -> None:
    assert "long sentence" in find_rules(words, place.format(" ".join(["word"] * 36)))
    assert "long sentence" not in find_rules(words, place.format(" ".join(["word"] * 35)))


@pytest.mark.parametrize(
    "sentence",
    [
        "By default it runs where nothing is said of workers",
        "It differs, which is said",
        "Of T5 the encoder is taken",
        "Where the output is a file, a line is printed",
        "This is no result",
        "The table says which methods run",
        "`check` says what is wrong",
        "The column is found by itself",
        "This powerful method is fast",
        "The behaviour differs",
        "The features are normalised first",
    ],
)
def test_each_banned_phrase_is_found(words, sentence: str) -> None:
    assert find_rules(words, f"{sentence}.") == ["banned phrase"]


@pytest.mark.parametrize(
    "sentence",
    [
        "There is no server, and rounds are no longer slow",
        "The files lie where the run began",
        "`describe` prints settings, and `neighbours` is one of them",
        "Users say that tables help",
        "The noise rises, and the promise of the premise is precise",
    ],
)
def test_plain_words_are_not_taken_for_banned_ones(words, sentence: str) -> None:
    assert find_rules(words, f"{sentence}.") == []


def test_an_old_term_is_found_with_the_term_of_the_glossary(words) -> None:
    [finding] = words.check_page("docs/page.md", "Accuracy is measured on the test rows.")
    assert finding.rule == "old term"
    assert "'example'" in finding.what


def test_each_new_term_is_in_the_glossary(words) -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    terms = {re.sub(r" \(.*\)", "", term) for row in rows for term in row.split(", ")} | {"reduced work"}
    assert set(words.OLD_TERMS.values()) <= terms


def test_the_mean_sentence_of_a_page_is_limited(words) -> None:
    sentence = " ".join(["word"] * 17) + ". "
    assert find_rules(words, sentence.capitalize() * 3) == ["mean sentence"]


def test_a_page_begins_with_its_answer(words) -> None:
    assert find_rules(words, "# Bytes\n\nHow do you send fewer bytes? Use a codec.\n") == ["question first"]
    assert find_rules(words, "# Bytes\n\nUse a codec. Which one fits your task?\n") == []


def test_a_first_page_must_be_easy_to_read(words) -> None:
    text = "Institutional considerations necessitate comprehensive organizational documentation. " * 3
    assert [finding.rule for finding in words.check_page("README.md", text)] == ["reading ease"]


def test_code_and_generated_parts_of_a_page_are_left_out(words) -> None:
    long = "of before " * 40
    page = f"```bash\n{long}\n```\n\n<!-- made by: a command -->\n\n{long}\n\n<!-- end -->\n\n`{long}` runs.\n"
    assert find_rules(words, page) == []


def test_a_sentence_does_not_end_at_an_abbreviation_or_a_decimal_point(words) -> None:
    text = "It reaches 0.8 with e.g. LoRA (Hu et al. 2021). Then it stops."
    assert words.split_sentences(text) == ["It reaches 0.8 with e.g. LoRA (Hu et al. 2021).", "Then it stops."]


def test_docstrings_settings_and_messages_of_a_module_are_checked(words, tmp_path, monkeypatch) -> None:
    long = " ".join(["word"] * 36)
    (tmp_path / "one.py").write_text(
        f'"""The mean.\n\n    x = {long}\n\n{long}."""\n'
        f'number = setting(1, "{long}")\n'
        f'"""{long}."""\n'
        "def f():\n"
        f'    """Return it.\n\n    Raises:\n        ConfigError: {long}.\n    """\n'
        f'    raise ConfigError("FP1001 {long}")\n',
        encoding="utf-8",
    )
    words.load_errors()
    monkeypatch.setattr(words, "ROOT", tmp_path)
    findings = list(words.check_code("one.py", tmp_path / "one.py"))
    assert {finding.rule for finding in findings} == {"long sentence"}
    assert sorted(finding.line for finding in findings) == [5, 6, 7, 12, 14]

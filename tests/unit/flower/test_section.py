"""The Flower app's settings are those of a run."""

from __future__ import annotations

import pytest

from fedpeft.flower.section import HEADER, format_section, main, replace_section
from fedpeft.flower.settings import OWN_KEYS
from tests.processes.flower.test_flower_app import ROOT
from tests.refusals import has_error


def test_the_section_of_the_app_is_made_from_the_settings():
    text = (ROOT / "pyproject.toml").read_text()
    assert format_section() in text, "make it anew with python -m fedpeft.flower.section"
    assert replace_section(text) == text
    assert all(f"{key} = " in format_section() for key in OWN_KEYS)


def test_what_stands_around_the_section_stays():
    assert (
        replace_section(f"[a]\nb = 1\n\n{HEADER}old = 1\n\n[c]\nd = 2\n")
        == f"[a]\nb = 1\n\n{format_section()}\n[c]\nd = 2\n"
    )


def test_the_command_renews_a_file_s_section(tmp_path, capsys):
    file = tmp_path / "pyproject.toml"
    file.write_text(f"[a]\nb = 1\n\n{HEADER}old = 1\n")
    assert main([str(file)]) == 0
    assert file.read_text() == f"[a]\nb = 1\n\n{format_section()}"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "code"),
    [(None, "FP1176"), (b"\xff", "FP1176"), (b"[a]\n", "FP1177")],
)
def test_a_file_that_has_no_section_to_renew_is_one_sentence(content, code, tmp_path, capsys):
    file = tmp_path / "pyproject.toml"
    if content is not None:
        file.write_bytes(content)
    assert main([str(file)]) == 2
    assert has_error(capsys.readouterr().err, code, file)

"""The Flower app's settings are those of a run."""

from __future__ import annotations

from fedpeft.flower.section import HEADER, replaced, section
from fedpeft.flower.settings import OWN_KEYS
from tests.flower.test_flower_app import ROOT


def test_the_section_of_the_app_is_made_from_the_settings():
    text = (ROOT / "pyproject.toml").read_text()
    assert section() in text, "make it anew with python -m fedpeft.flower.section"
    assert replaced(text) == text
    assert all(f"{key} = " in section() for key in OWN_KEYS)


def test_what_stands_around_the_section_stays():
    assert replaced(f"[a]\nb = 1\n\n{HEADER}old = 1\n\n[c]\nd = 2\n") == f"[a]\nb = 1\n\n{section()}\n[c]\nd = 2\n"

"""The files that docs/own-parts.md shows are those of examples/, which tests of runs use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOWN = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "own-parts.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
)


@pytest.mark.parametrize("name", ["budget.py", "by_length.py"])
def test_a_shown_file_is_the_example(name):
    assert (ROOT / "examples" / name).read_text("utf-8") in SHOWN

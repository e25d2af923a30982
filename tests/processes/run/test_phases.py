"""Where a run's time goes, and that it is never silent for long."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.medium
def test_the_command_can_speak_before_the_libraries_are_loaded():
    """They take seconds; the first line must not wait for them."""
    look = "import sys, fedpeft.simulate; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

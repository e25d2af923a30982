"""fedpeft completion: a shell that has read the script completes commands, their flags, and files."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from fedpeft.__main__ import COMMANDS

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_fedpeft
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Asks bash what it offers for the last word."""
    script = tmp_path_factory.mktemp("completion") / "fedpeft"
    with script.open("w") as file:
        subprocess.run([sys.executable, "-m", "fedpeft", "completion", "bash"], stdout=file, check=True)

    def ask(*words):
        command = ["bash", "-c", ASK, "bash", str(script), "fedpeft", *words]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    return ask


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_commands_and_their_flags(complete):
    assert set(COMMANDS) <= complete("")
    assert complete("s") == {"simulate", "study", "serve"}
    assert {"--merge", "--push", "--client"} <= complete("export", "--")
    assert complete("simulate", "--lo") == {"--local-work"}
    assert complete("join", "--da") == {"--data"}
    assert "--strategy" not in complete("join", "--")
    assert complete("export", "run") == set(), "so bash completes files, as for any other program"

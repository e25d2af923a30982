"""The page of `--help` lists every setting once, in its group, on two screens."""

from __future__ import annotations

import dataclasses

import pytest

from fedpeft.reporting.help_page import GROUPS
from fedpeft.serve import main as serve
from fedpeft.simulate import main as simulate
from fedpeft.wiring.config import RunConfig


def test_each_setting_is_in_one_group():
    names = [name for members in GROUPS.values() for name in members]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(RunConfig))


@pytest.mark.parametrize(
    ("command", "hidden"),
    [(simulate, set()), (serve, {"--partition", "--attack", "--grid"})],
    ids=["simulate", "serve"],
)
def test_the_page_fits_on_two_screens_and_lists_each_flag_below_its_group(command, hidden, capsys):
    with pytest.raises(SystemExit) as ended:
        command(["--help"])
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    assert not hidden & set(flags)
    for group, members in GROUPS.items():
        below = lines[lines.index(f"{group}:") + 1 :]
        shown = ["--" + name.replace("_", "-") for name in members]
        shown = [flag for flag in shown if flag not in hidden]
        assert [line.split()[0] for line in below if line.startswith("  --")][: len(shown)] == shown

"""The frame that all commands share."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest

import fedpeft
from fedpeft import __main__
from fedpeft.parts import plugins
from fedpeft.reporting.command import MISTAKE, name_program, parse_flags, run_tool
from fedpeft.wiring.catalogue import FLAGS
from tests.refusals import has_error

PLUGIN = '''
from dataclasses import dataclass
from fedpeft.aggregation.strategy import LinearStrategy

@dataclass(frozen=True)
class Half(LinearStrategy):
    """A half of the mean."""

parts = {"strategies": {"half_of_it": Half}}
'''


@dataclass(frozen=True)
class Flags:
    """Flags of a command."""

    count: int = 1
    plugin: tuple[str, ...] = ()


def test_a_tool_parses_its_flags_loads_its_plugins_and_returns_the_exit_code(tmp_path):
    (tmp_path / "own.py").write_text(PLUGIN, encoding="utf-8")

    def work(flags, console):
        assert not console.stderr
        assert "half_of_it" in FLAGS["strategy"].families[0].names
        return flags.count

    with plugins.use_parts({}):
        code = run_tool(Flags, work, ["--count", "7", "--plugin", str(tmp_path / "own.py")], silent=False)
    assert code == 7


def test_a_plugin_that_is_not_there_is_a_mistake_before_the_work(capsys):
    with plugins.use_parts({}):
        code = run_tool(Flags, lambda *_: pytest.fail("the work begins"), ["--plugin", "nowhere.py"], silent=False)
    assert code == MISTAKE
    assert has_error(capsys.readouterr().err, "FP1263", "nowhere.py")


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_every_command_starts_alike_and_is_called_as_its_module(name):
    module = __main__.find_module(name)
    text = (Path(fedpeft.__file__).parent.parent / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert text.endswith(f'if __name__ == "__main__":\n    start_command("{module.removeprefix("fedpeft.")}")\n')
    assert name_program(importlib.import_module(module).Command) == f"fedpeft {name}"


def test_flags_over_defaults_keep_what_is_not_given():
    assert parse_flags(Flags, [], Flags(count=4)) == Flags(count=4)
    assert parse_flags(Flags, ["--count", "2"], Flags(count=4, plugin=("own.py",))) == Flags(2, ("own.py",))

"""A plugin's file that can't be loaded says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpeft.errors import ConfigError
from fedpeft.parts import plugins
from fedpeft.parts.plugin_files import MODULE, import_file
from tests.refusals import refuses


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ("x = 1\n\ndef f(:\n", "invalid syntax (inner.py, line 3)"),
        ("x = 1\ny = nothing\n", f"NameError: name 'nothing' is not defined ({Path('sub', 'inner.py')}, line 2)"),
    ],
)
def test_what_fails_in_a_folder_is_said_with_its_file(tmp_path, inner, words):
    folder = tmp_path / "my_rules"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text("from .sub import inner\n")
    (folder / "sub" / "__init__.py").write_text("")
    (folder / "sub" / "inner.py").write_text(inner)
    with pytest.raises(ConfigError) as told:
        import_file(f"{MODULE}{tmp_path.name}", folder / "__init__.py", folder)
    assert str(told.value) == f"FP1249 the plugin {folder} can't be loaded: {words}"


REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("strategies", "strategies/fedit.py"),
        ("attacks", "clients/attacks/sign_flip.py"),
        ("codecs", "fedpeft/communication/codecs/cast.py"),
        ("hooks", "examples/budget.py"),
        ("measurements", "fedpeft/measurements/pooled.py"),
        ("measurements", "examples/by_length.py"),
        ("mechanisms", "fedpeft/privacy/mechanisms/none.py"),
        ("peft_methods", "fedpeft/peft/methods/ia3.py"),
        ("tasks", "fedpeft/models/tasks/regression.py"),
    ],
)
def test_a_file_of_the_repository_is_a_plugin_as_it_stands(tmp_path, fresh_plugins, group, file):
    copy = tmp_path / "my_part.py"
    copy.write_text((REPOSITORY / file).read_text(encoding="utf-8"), encoding="utf-8")
    assert plugins.find_plugin(str(copy)).names == [f"{group}.my_part"]


@pytest.mark.parametrize("text", ["class C:\n    pass\npart = C\n", "part = 3\n"])
def test_a_part_without_a_group_is_refused_with_the_groups(tmp_path, fresh_plugins, text):
    (tmp_path / "my_part.py").write_text(text)
    with refuses("FP1504", "my_part.py", 'parts = {"GROUP": {"my_part"', "strategies"):
        plugins.find_plugin(str(tmp_path / "my_part.py"))

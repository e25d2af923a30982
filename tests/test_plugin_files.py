"""A plugin's file that can't be loaded says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpeft.errors import ConfigError
from fedpeft.plugin_files import MODULE, imported


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
        imported(f"{MODULE}{tmp_path.name}", folder / "__init__.py", folder)
    assert str(told.value) == f"the plugin {folder} can't be loaded: {words}"

"""The house stays one that is read: no long function, no class that holds everything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("fedpeft", "strategies", "clients", "experiments", "examples", "tests", ".ci")
FUNCTION_LINES, ATTRIBUTES = 60, 17
GENERATED = ("v2_pb2.py", "v2_pb2_grpc.py")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*.py") if path.name not in GENERATED)


def long_functions(text: str) -> list[str]:
    """Names of functions that are too long; docstrings count for nothing, and `# long:` with a reason is one."""
    lines = text.splitlines()
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function) and "# long: " not in lines[node.lineno - 2]:
            said = ast.get_docstring(node, clean=False)
            if node.end_lineno - node.lineno + 1 - (said.count("\n") + 1 if said else 0) > FUNCTION_LINES:
                found.append(node.name)
    return found


def attributes(owner: ast.ClassDef) -> set[str]:
    """What is set on `self` in a class's methods."""
    return {
        node.attr
        for node in ast.walk(owner)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if isinstance(node.value, ast.Name) and node.value.id == "self"
    }


def large_classes(text: str) -> list[str]:
    """Names of classes with too many attributes; what is declared as fields is plain data, and free."""
    classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    return [owner.name for owner in classes if len(attributes(owner)) > ATTRIBUTES]


@pytest.mark.medium
@pytest.mark.parametrize("find", [long_functions, large_classes])
def test_no_function_is_long_and_no_class_holds_everything(find):
    paths = list(modules())
    assert len(paths) > 300
    assert {str(path): names for path in paths if (names := find(path.read_text(encoding="utf-8")))} == {}


def test_what_is_too_long_is_found():
    long = "def f():\n" + "    pass\n" * FUNCTION_LINES
    assert long_functions(long) == ["f"]
    assert long_functions(long.replace("    pass\n", "", 1)) == []
    assert long_functions("# long: it is a table\n" + long) == []
    assert long_functions(long.replace("    pass\n", '    """What\n\n    it does."""\n', 1)) == []
    large = "class C:\n    def __init__(self):\n" + "".join(f"        self.a{i} = 0\n" for i in range(ATTRIBUTES + 1))
    assert large_classes(large) == ["C"]
    assert large_classes(large.replace("self.a0", "self.a1")) == []

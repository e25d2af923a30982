"""Draw 20 lines of the product and break each: `python -m experiments.mutation.broken_lines OLD NEW`.

OLD and NEW are folders with a checkout. A line is drawn if it stands in a function, once and with equal text in the
same file of both. It must also be breakable: the condition of an `if` or `while` is negated, a statement that is a call
is dropped, or a number or truth value is changed. `--apply N` writes break number N into both folders. `git checkout .`
in each undoes it.
"""

from __future__ import annotations

import argparse
import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEED, LINES = 61, 20
FOLDERS = ("fedpeft", "strategies", "clients")


@dataclass(frozen=True)
class Break:
    """One line and its broken text."""

    path: str
    kind: str
    before: str
    after: str

    def apply(self, folder: Path) -> None:
        """Break the line in a checkout."""
        file = folder / self.path
        lines = file.read_text(encoding="utf-8").split("\n")
        lines[lines.index(self.before)] = self.after
        file.write_text("\n".join(lines), encoding="utf-8")


def replace(line: str, node: ast.expr | ast.stmt, text: str) -> str:
    """Return a line with other text in a node's place; offsets count bytes."""
    raw = line.encode()
    return (raw[: node.col_offset] + text.encode() + raw[node.end_col_offset :]).decode()


def find_breaks(path: str, text: str) -> Iterator[Break]:
    """Yield all breaks of all lines in functions."""
    lines = text.split("\n")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in {inner for function in functions for statement in function.body for inner in ast.walk(statement)}:
        if not isinstance(node, ast.expr | ast.stmt) or (node.lineno != node.end_lineno and not hasattr(node, "test")):
            continue
        line = lines[node.lineno - 1]
        if isinstance(node, ast.If | ast.While | ast.IfExp) and node.test.lineno == node.test.end_lineno == node.lineno:
            yield Break(path, "negated condition", line, replace(line, node.test, f"not ({ast.unparse(node.test)})"))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield Break(path, "dropped call", line, replace(line, node, "pass"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            changed = not node.value if isinstance(node.value, bool) else node.value + 1
            yield Break(path, "changed constant", line, replace(line, node, str(changed)))


def find_common(old: Path, new: Path) -> dict[tuple[str, str], list[Break]]:
    """Return the breaks of each line that stands once in the same file of both checkouts, by file and line."""
    breaks: dict[tuple[str, str], list[Break]] = {}
    for file in sorted(file for folder in FOLDERS for file in (new / folder).rglob("*.py")):
        path = str(file.relative_to(new))
        if not (old / path).is_file():
            continue
        texts = [(folder / path).read_text(encoding="utf-8") for folder in (old, new)]
        common = {one.before for one in find_breaks(path, texts[0])}
        for one in sorted(find_breaks(path, texts[1]), key=lambda one: (one.before, one.kind, one.after)):
            is_single = all(text.split("\n").count(one.before) == 1 for text in texts)
            if is_single and one.before in common:
                breaks.setdefault((path, one.before), []).append(one)
    return breaks


def draw(old: Path, new: Path) -> list[Break]:
    """Return the drawn breaks."""
    drawing = random.Random(SEED)
    breaks = find_common(old, new)
    return [drawing.choice(breaks[place]) for place in drawing.sample(sorted(breaks), LINES)]


def main() -> None:
    """Print the drawn breaks, or apply one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--apply", type=int, metavar="N")
    given = parser.parse_args()
    drawn = draw(given.old, given.new)
    if given.apply:
        for folder in (given.old, given.new):
            drawn[given.apply - 1].apply(folder)
    else:
        for number, one in enumerate(drawn, 1):
            print(f"{number:2} {one.path}: {one.kind}\n   - {one.before.strip()}\n   + {one.after.strip()}")


if __name__ == "__main__":
    main()

"""A file of rows, and the same with all labels exchanged."""

from pathlib import Path


def rows(path: Path, labels: str = "ab") -> None:
    lines = [f"{'sun warm' if i % 2 else 'snow cold'} word{i},{labels[i % 2]}" for i in range(80)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")


def swap(path: Path) -> None:
    rows(path, "ba")

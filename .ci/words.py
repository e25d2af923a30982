"""python .ci/words.py: check the language of pages, docstrings and messages; exit with 1 if it prints a finding.

    python .ci/words.py docs/faq.md    check these files alone
    python .ci/words.py --counts       print the number of findings by rule

The rules apply to README.md, CONTRIBUTING.md, SECURITY.md and docs/*.md, to docstrings, and to the sentences of errors
and settings. Code, formulas and generated parts of pages are left out.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import textstat

ROOT = Path(__file__).parent.parent
FOLDERS = ("fedpeft", "strategies", "clients")
GENERATED_PAGES = ("docs/errors.md",)
GENERATED_CODE = ("v2_pb2.py", "v2_pb2_grpc.py")

MOST_WORDS, MEAN_WORDS, READING_EASE = 35, 16.0, 55.0
"""Longest sentence; mean sentence of a page; least Flesch reading ease of `EASY_PAGES`."""
EASY_PAGES = ("README.md", "docs/index.md", "docs/tutorials.md")
COMMANDS = "check|describe|simulate|evaluate|predict|report|study|tune|export|audit|join|serve"
BANNED = {
    r"\bnothing is said\b": "write 'by default'",
    r"(?<!nothing )\b(?:is|are|was|were) said\b": "name who reports it",
    r"\bof before\b": "write 'previous' or 'earlier'",
    r"^Of (?!course)": "write 'for X' or \"X's\"",
    r"^Where\b[^.?]*,": "write 'if' or 'when'; 'where' refers to places",
    r"(?<!there )(?<!There )(?<!which )\b(?:is|are) no (?!longer|more\b|less\b|better|worse|fewer|larger|other)[a-z]":
        "write 'is not a ...'",
    r"\b(?:log|file|command|table|line|option|flag|setting|page|run|report|summary|message|error|column|codec|strategy"
    r"|method|test|docstring|list|name|word|row|figure|number)s? (?:says?|tells?|knows?|wants?)\b":
        "objects do not say, tell, know or want: write 'reports', 'contains' or 'sets'",
    rf"`(?:{COMMANDS})` (?:say|tell|know)s?\b":
        "commands do not say, tell or know: write 'reports' or 'prints'",
    r"\bby (?:itself|themselves)\b": "write 'automatically' or 'alone'",
    r"\b(?:seamless|powerful|effortless|blazing|cutting-edge|state-of-the-art|world-class)(?:ly)?\b": "no marketing",
    r"\b(?:behaviour|colour|favour|neighbour|honour|centre|licence|grey|whilst|artefact|judgement|modelling|labelled"
    r"|cancelled|travelled|learnt|programme)s?\b": "use American spelling",
    r"\b\w*(?:initial|normal|regular|organ|recogn|optim|summar|random|standard|orthogonal|general|minim|maxim|special"
    r"|token|serial|util|author|emphas|penal|personal|centr)is(?:e|es|ed|ing|ation|ations)\b": "use American spelling",
}  # fmt: skip
"""Patterns that no sentence may contain, each with what to do. `^` is the start of a sentence."""

OLD_TERMS = {
    r"\b(?:training|test|validation|local) rows?\b": "example",
    r"\brows? of (?:a|each|the|all|one) clients?\b": "example",
    r"\bunheard\b": "silent",
    r"\blean (?:work|round|rounds|step|steps)\b": "reduced work",
    r"\bmain net(?:work)?\b": "base model",
    r"\b(?:pre-trained|backbone) model\b": "base model",
    r"\b(?:noise scale|noise level|sigma multiplier)\b": "noise multiplier",
    r"\b(?:clip norm|clip bound|clipping bound|clipping threshold)\b": "clipping norm",
    r"\b(?:upload link|up-link)\b": "uplink",
    r"\b(?:download link|down-link)\b": "downlink",
    r"\bsecure aggregations?\b": "secure sum",
    r"\bdata sets?\b": "dataset",
    r"\bmemory of dropped parts\b": "error feedback",
}
"""Patterns of old terms, each with the term of docs/glossary.md that replaces it."""

BEGIN, END = "<!-- made by:", "<!-- end -->"
SECTION = re.compile(r"(?:Args|Arguments|Attributes|Raises|Returns|Yields|Examples?|Note|Notes):")


@dataclass(frozen=True)
class Text:
    """One paragraph, list item, table cell or message of a file.

    Attributes:
        line: where it starts, counted from 1.
        text: its words; inline code is one word.
        prose: whether its sentences count for the mean of a page.
    """

    line: int
    text: str
    prose: bool = True


@dataclass(frozen=True)
class Finding:
    """One place that breaks a rule."""

    path: str
    line: int
    rule: str
    what: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.path}:{self.line}: {self.rule}: {self.what}"


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text. Abbreviations and decimal points end none."""
    shielded = re.sub(r"\b(e\.g|i\.e|et al|vs|cf|approx|No|Fig|Eq|resp)\.", lambda m: m[0].replace(".", "\0"), text)
    parts = re.split(r"(?<=[.!?])[\"')*_]*\s+(?=[A-Z0-9`\"'(*_\[{])", shielded)
    return [part.replace("\0", ".").strip() for part in parts if re.search(r"[A-Za-z]", part)]


def count_words(sentence: str) -> int:
    """Count the words of a sentence; inline code and a placeholder are one word each."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def simplify(text: str) -> str:
    """Return Markdown as plain text: links as their words, inline code without spaces, no tags."""
    text = re.sub(r"`[^`]*`", lambda code: re.sub(r"\s+", "_", code[0]), text)
    text = re.sub(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"<[^>]+>|https?://\S+", "", text)
    return re.sub(r"\*\*|__", "", text).strip()


def read_page(text: str) -> Iterator[Text]:
    """Yield the paragraphs, list items, headings and table cells of a page."""
    block: list[str] = []
    start, skip, fence = 0, False, ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        stripped = line.strip()
        if mark := re.match(r"(`{3,}|~{3,})", stripped):
            fence = "" if fence and stripped.startswith(fence) else fence or mark[1]
            stripped = ""
        skip = (skip or stripped.startswith(BEGIN)) and not stripped.startswith(END)
        if fence or skip or stripped.startswith("<!--"):
            stripped = ""
        item = re.match(r"(?:[-*+]|\d+\.)\s+", stripped)
        separate = not stripped or item or stripped.startswith(("|", "#", ">"))
        if block and separate:
            yield Text(start, simplify(" ".join(block)))
            block = []
        if stripped.startswith("|"):
            cells = re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`", lambda c: c[0].replace("|", "/"), stripped.strip("|")))
            words = [simplify(cell) for cell in cells if re.search(r"[A-Za-z]", cell) and "→" not in cell]
            yield from (Text(number, cell, prose=False) for cell in words)
        elif stripped.startswith("#"):
            yield Text(number, simplify(stripped.lstrip("# ")), prose=False)
        elif stripped:
            start = start if block else number
            block.append(stripped[item.end() :] if item else stripped.lstrip("> "))


def read_docstrings(tree: ast.AST) -> Iterator[Text]:
    """Yield the paragraphs of each docstring, and of each string below an attribute; formulas are left out."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for value in (child.value for child in node.body if isinstance(child, ast.Expr)):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield from _read_docstring(value.value, value.lineno)


def _read_docstring(text: str, first: int) -> Iterator[Text]:
    block: list[str] = []
    start, section = first, False
    for number, line in enumerate([*inspect.cleandoc(text).splitlines(), ""], first):
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if stripped and not indent:
            section = bool(SECTION.fullmatch(stripped))
        is_formula = indent > 0 and not section and not (block and indent <= 2)
        is_entry = section and indent == 4
        if block and (not stripped or is_formula or is_entry or re.match(r"[-*|] ?", stripped)):
            yield Text(start, simplify(" ".join(block)))
            block = []
        if stripped and not is_formula and not SECTION.fullmatch(stripped) and not stripped.startswith(("|", ">>>")):
            start = start if block else number
            block.append(re.sub(r"^[-*] ", "", stripped))


def read_settings(tree: ast.AST) -> Iterator[Text]:
    """Yield the help text of each `setting(default, "help")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setting" and len(node.args) > 1:
            words = node.args[1]
            if isinstance(words, ast.Constant) and isinstance(words.value, str):
                yield Text(words.lineno, words.value, prose=False)


@cache
def load_errors() -> ModuleType:
    """Load `.ci/errors.py`, which finds the sentences of errors."""
    spec = importlib.util.spec_from_file_location("error_listing", ROOT / ".ci" / "errors.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["error_listing"] = module
    spec.loader.exec_module(module)
    return module


def read_messages(path: Path) -> Iterator[Text]:
    """Yield the sentences of a module's errors, with one word for each value that is filled in."""
    errors = load_errors()
    module = errors.Module(ROOT, path)
    for node in errors.coded(module):
        text = errors.Writer(module, values=False).text(node)
        yield Text(node.lineno, re.sub(r"\{[^{}]*\}", "{}", text.partition(" ")[2]), prose=False)


def check_text(path: str, text: Text) -> Iterator[Finding]:
    """Yield what is wrong with one text."""
    for sentence in split_sentences(text.text):
        for part in sentence.split("; ") if not text.prose else [sentence]:
            if (words := count_words(part)) > MOST_WORDS:
                yield Finding(path, text.line, "long sentence", f"{words} words: {part[:70]}...")
        bare = re.sub(r"`[^`]*`", lambda code: code[0] if code[0][1:-1] in COMMANDS else "`x`", sentence)
        for pattern, advice in BANNED.items():
            if match := re.search(pattern, bare):
                yield Finding(path, text.line, "banned phrase", f"{match[0][:40]!r}: {advice}")
        for pattern, term in OLD_TERMS.items():
            if match := re.search(pattern, bare, re.IGNORECASE):
                yield Finding(path, text.line, "old term", f"{match[0]!r}: write {term!r}")


def check_page(path: str, content: str) -> Iterator[Finding]:
    """Yield what is wrong with a page."""
    texts = list(read_page(content))
    for text in texts:
        yield from check_text(path, text)
    prose = [sentence for text in texts if text.prose for sentence in split_sentences(text.text)]
    if prose and prose[0].endswith("?"):
        yield Finding(path, 1, "question first", f"begin with the answer: {prose[0][:70]}")
    lengths = [count_words(sentence) for sentence in prose]
    if lengths and (mean := sum(lengths) / len(lengths)) > MEAN_WORDS:
        yield Finding(path, 1, "mean sentence", f"{mean:.1f} words; at most {MEAN_WORDS:g}")
    if path in EASY_PAGES and (ease := textstat.flesch_reading_ease(" ".join(prose))) < READING_EASE:
        yield Finding(path, 1, "reading ease", f"{ease:.0f}; at least {READING_EASE:g}")


def check_code(path: str, file: Path) -> Iterator[Finding]:
    """Yield what is wrong with the docstrings, settings and messages of a module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for text in (*read_docstrings(tree), *read_settings(tree), *read_messages(file)):
        yield from check_text(path, text)


def find_files() -> list[str]:
    """Return all files that the rules apply to, in order."""
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
        (ROOT / "docs").glob("*.md")
    )
    modules = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    paths = [path.relative_to(ROOT).as_posix() for path in (*pages, *modules) if path.name not in GENERATED_CODE]
    return [path for path in paths if path not in GENERATED_PAGES]


def check(path: str) -> list[Finding]:
    """Return what is wrong with a file, once each."""
    file = ROOT / path
    found = check_code(path, file) if file.suffix == ".py" else check_page(path, file.read_text(encoding="utf-8"))
    return list(dict.fromkeys(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the files; return 1 if a line was printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="check these alone")
    parser.add_argument("--counts", action="store_true", help="print numbers of findings")
    options = parser.parse_args(arguments)
    findings = {path: check(path) for path in options.files or find_files()}
    if options.counts:
        counts = Counter((Path(path).suffix, finding.rule) for path, found in findings.items() for finding in found)
        print(*(f"{number:6} {suffix:4} {rule}" for (suffix, rule), number in sorted(counts.items())), sep="\n")
        return 0
    lines = [finding for found in findings.values() for finding in found]
    print(*lines, sep="\n", end="\n" if lines else "")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())

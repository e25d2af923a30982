"""python .ci/errors.py: write docs/errors.md and tests/golden/errors.txt, which list all errors with a code.

Both come from the sentences in the code, which is parsed and not executed. `tests/unit/test_errors.py` compares them
with the files. It refuses a sentence without a code, two causes with one code, and a retired code that returns.
"""

from __future__ import annotations

import ast
import html
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedpeft import errors
from fedpeft.errors import FedpeftError

ROOT = Path(__file__).parent.parent
FOLDERS = ("clients", "fedpeft", "strategies")
LEFT_OUT = ("fedpeft/init/starter/", "fedpeft/conformance/test_")
"""Prefixes of paths that are left out: a user's project, and tests."""
GOLDEN, PAGE = Path("tests/golden/errors.txt"), Path("docs/errors.md")
RETIRED = "(retired)"
CODED = re.compile(r"(FP\d{4}) (.*)", re.DOTALL)
SHOWING = (
    "brief", "escape", "filter", "float", "int", "join", "len", "list", "map", "max", "min", "name_of", "part_text",
    "quote", "repr", "round", "set", "sorted", "str", "sum", "tuple", "type",
)  # fmt: skip
"""Functions whose placeholder is named after their last argument."""
METHODS = ("get", "item", "items", "keys", "lower", "removeprefix", "split", "strip", "tolist", "values")
"""Methods whose placeholder is named after their object."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
FAMILIES = {name: c for name, c in vars(errors).items() if isinstance(c, type) and issubclass(c, FedpeftError)}


class Module:
    """A parsed file, with the functions and constants that its expressions refer to."""

    def __init__(self, root: Path, path: Path) -> None:
        """Parse the file."""
        self.path = path.relative_to(root).as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    @cached_property
    def functions(self) -> dict[str, Function]:
        """Functions and methods by name."""
        return {node.name: node for node in ast.walk(self.tree) if isinstance(node, Function)}

    @cached_property
    def constants(self) -> dict[str, object]:
        """Literal values of the module's names."""
        values: dict[str, object] = {}
        for node in self.tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
                try:
                    values[target.id] = ast.literal_eval(node.value)
                except ValueError:
                    continue
        return values

    def scope(self, node: ast.AST) -> ast.AST:
        """Return the function around a node, or the module."""
        while not isinstance(node, Function | ast.Module):
            node = self.parents[node]
        return node

    def assigned(self, name: ast.Name) -> list[ast.expr]:
        """Return the expressions that the function around a name assigns to it."""
        nodes = list(ast.walk(self.scope(name)))
        plain = [n.value for n in nodes if isinstance(n, ast.Assign) and name.id in map(ast.unparse, n.targets)]
        return plain + [n.value for n in nodes if isinstance(n, ast.NamedExpr) and n.target.id == name.id]

    def sentences(self, node: ast.expr, depth: int = 3) -> list[ast.expr]:
        """Return the literal sentences that an expression can be; none if it only passes one on."""
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            return [node]
        if isinstance(node, ast.BinOp):
            return [node] if self.sentences(node.left, depth) else []
        branches: list[ast.expr] = []
        if isinstance(node, ast.IfExp):
            branches = [node.body, node.orelse]
        elif isinstance(node, ast.BoolOp):
            branches = node.values
        elif isinstance(node, ast.Name) and depth:
            branches = self.assigned(node)
        elif isinstance(node, ast.Call) and depth:
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            inside = ast.walk(self.functions[called]) if called in self.functions else ()
            branches = [n.value for n in inside if isinstance(n, ast.Return) and n.value]
        return [sentence for branch in branches for sentence in self.sentences(branch, depth - 1)]


@dataclass
class Cause:
    """A code with its sentence, the error classes that carry it, and its files."""

    code: str
    sentence: str
    shown: str
    """The sentence with the values of constants."""
    classes: set[str] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The line of the golden list."""
        return f"{self.code} {'|'.join(sorted(self.classes))}: {self.sentence}"


class Writer:
    """A writer of the code's sentences, with names in place of values."""

    def __init__(self, module: Module, values: bool) -> None:
        """Hold the module, and whether to insert the values of constants."""
        self.module, self.values = module, values
        self.open: set[str] = set()

    def text(self, node: ast.expr) -> str:
        """Return the text of an expression, with values in braces and alternatives in brackets."""
        if isinstance(node, ast.JoinedStr):
            return "".join(self.text(part) for part in node.values)
        if isinstance(node, ast.FormattedValue):
            return self.filled(node.value)
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.text(node.left) + self.text(node.right)
        if isinstance(node, ast.IfExp):
            first, second = self.text(node.body), self.text(node.orelse)
            return f"[{first}|{second}]" if first and second else f"[{first or second}]"
        return self.filled(node)

    def filled(self, node: ast.expr) -> str:
        """Return a placeholder for a value, or its text if the code defines it."""
        if isinstance(node, ast.IfExp | ast.JoinedStr | ast.Constant):
            return self.text(node)
        if isinstance(node, ast.Name):
            known = self.module.assigned(node)
            if len(known) == 1 and isinstance(known[0], ast.JoinedStr) and node.id not in self.open:
                self.open.add(node.id)
                text = self.text(known[0])
                self.open.remove(node.id)
                return text
        name = self.name(node)
        if self.values and isinstance(
            value := self.module.constants.get(name), str | int | float | tuple | list | dict
        ):
            return ", ".join(map(str, value)) if isinstance(value, tuple | list | dict) else str(value)
        return f"{{{name}}}"

    def name(self, node: ast.AST) -> str:
        """Return a word for a value."""
        if isinstance(node, ast.Name):
            return "part" if node.id in ("self", "cls") else node.id.strip("_")
        if isinstance(node, ast.Attribute):
            return node.attr.strip("_") if node.attr not in ("name", "__name__") else self.name(node.value)
        if isinstance(node, ast.Subscript | ast.Starred | ast.FormattedValue | ast.Await | ast.NamedExpr):
            return self.name(node.value)
        if isinstance(node, ast.BinOp):
            return self.name(node.right if isinstance(node.left, ast.Constant) else node.left)
        if isinstance(node, ast.GeneratorExp | ast.ListComp | ast.SetComp):
            return self.name(node.generators[0].iter)
        if isinstance(node, ast.Call):
            called = self.name(node.func)
            if called in SHOWING and node.args:
                return self.name(node.args[-1])
            if called in METHODS and isinstance(node.func, ast.Attribute):
                return self.name(node.func.value)
            return called
        return "..."


def modules(root: Path) -> Iterator[Module]:
    """Parse the files that can refuse something, in order."""
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        if not path.relative_to(root).as_posix().startswith(LEFT_OUT):
            yield Module(root, path)


def families(parsed: list[Module]) -> dict[str, type[FedpeftError]]:
    """Return the class of fedpeft.errors for each name of an error class, also of those that other modules define."""
    known = dict(FAMILIES)
    for node in (n for module in parsed for n in ast.walk(module.tree) if isinstance(n, ast.ClassDef)):
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in FAMILIES:
                known.setdefault(node.name, FAMILIES[base.id])
    return known


def first_text(node: ast.expr) -> str:
    """Return the literal text at the start of a sentence."""
    while isinstance(node, ast.BinOp):
        node = node.left
    head = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else node
    return head.value if isinstance(head, ast.Constant) and isinstance(head.value, str) else ""


def raised(module: Module, known: dict[str, type[FedpeftError]]) -> Iterator[tuple[str, ast.expr]]:
    """Yield each sentence of a module's errors, with the name of its class."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known and node.args:
            yield from ((node.func.id, sentence) for sentence in module.sentences(node.args[0]))


def coded(module: Module) -> Iterator[ast.expr]:
    """Yield each sentence of a module that starts with a code, wherever it stands."""
    for node in ast.walk(module.tree):
        whole = isinstance(node, ast.expr) and not isinstance(module.parents[node], ast.JoinedStr | ast.BinOp)
        if whole and CODED.match(first_text(node)):
            yield node


def blank(sentence: str) -> str:
    """Return a sentence without the names of its values, since equal sentences share a code."""
    return re.sub(r"\{[^{}]*\}", "{}", sentence)


def collect(root: Path) -> tuple[dict[str, Cause], list[str]]:
    """Return all causes by code, and a list of faults in the codes."""
    parsed, causes, faults = list(modules(root)), {}, []
    codes: dict[str, str] = {}
    known = families(parsed)
    for module in parsed:
        classes = {sentence: name for name, sentence in raised(module, known)}
        for sentence in classes:
            if not CODED.match(Writer(module, values=False).text(sentence)):
                faults.append(f"{module.path}:{sentence.lineno}: {classes[sentence]} has no code")
        for node in coded(module):
            code, text = CODED.match(Writer(module, values=False).text(node)).groups()
            _, shown = CODED.match(Writer(module, values=True).text(node)).groups()
            cause = causes.setdefault(code, Cause(code, text, shown))
            owner = classes.get(node, family_of(code))
            if (start := known[owner].uncoded[:3]) != code[:3]:
                faults.append(f"{module.path}:{node.lineno}: codes of {owner} start with {start}, not as {code}")
            if blank(cause.sentence) != blank(text):
                faults.append(f"{module.path}:{node.lineno}: {code} means something else in {cause.paths[0]}")
            if (other := codes.setdefault(f"{code[:3]} {blank(text)}", code)) != code:
                faults.append(f"{module.path}:{node.lineno}: this sentence has the code {other}, not {code}")
            cause.classes.add(owner)
            cause.paths.append(module.path)
    return dict(sorted(causes.items())), faults


def family_of(code: str) -> str:
    """Return the name of the class whose codes share this code's prefix."""
    return next(name for name, c in FAMILIES.items() if c.uncoded[:3] == code[:3])


def golden(causes: dict[str, Cause], before: str) -> str:
    """Return the golden list: a line for each code, including codes of `before` that have no sentence any more."""
    lines = {code: cause.line for code, cause in causes.items()}
    gone = {line[:6]: f"{line[:6]} {RETIRED}" for line in before.splitlines() if line[:6] not in lines}
    return "".join(f"{line}\n" for _, line in sorted((lines | gone).items()))


def free(family: type[FedpeftError], listed: str) -> str:
    """Return the next free code of a class; `listed` is the golden list."""
    start = family.uncoded[:3]
    return f"{start}{max([int(line[3:6]) for line in listed.splitlines() if line.startswith(start)], default=0) + 1:03}"


INTRODUCTION = """\
# Errors

Each error is one sentence that starts with a code: `error: FP1023 ...`. Search this page for the code. The code names
the cause and never changes its meaning. `python .ci/errors.py` writes this page from the code. Words in italics stand
for what you gave, and brackets hold words that only some cases show; *nearest* lists the legal names. `error.code` is
the code in Python. A sentence can quote another one: the first code is the outer cause, the last code is the innermost.

If the last column is empty, the text above the tables states what to do.

A code that ends in 000 belongs to an error without a code of its own, such as one that a plugin raises.
"""

REMEDIES = {
    "FedpeftError": "A plugin failed. Correct it at the line that the sentence names.",
    "ConfigError": "Change the flag, key, part or setting that the sentence names. `fedpeft describe` lists\n"
    "all parts with their settings, and [Commands](commands.md) lists all flags.",
    "AssetError": "Check the network, the free disk space and `FEDPEFT_CACHE`. [Install](install.md) has the details.",
    "DataError": "Correct the rows or the partition that the sentence names. `fedpeft check` shows a\n"
    "dataset before a run. [File formats](data-formats.md) lists all formats.",
    "ModelError": "Choose another base model or PEFT method. [Methods](methods.md) lists the methods.",
    "RunError": "Name the folder of a finished run, free disk space, or continue with `--resume`.\n"
    "[Deploy](deploy.md) covers servers and clients.",
    "PayloadError": "A peer sent bytes that do not fit. Run the same version with the same settings on both sides.\n"
    "If a client repeats it, exclude that client. [Wire](wire.md) describes the messages.",
    "PrivacyError": "Change the privacy setting, or start a new run with a new budget. [Privacy](privacy.md) explains\n"
    "what each mechanism protects.",
}
"""General advice about the errors of each class."""


def cell(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    text = re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))
    return re.sub(r"\{([^{}]*)\}", r"<i>\1</i>", text).replace("\n", " ")


ADVICE = re.compile(
    r"; (?!got )|: (?=(?:add|allow|ask|bring|check|choose|continue|fill|free|give|install|keep|leave|let|look|make|mend"
    r"|name|put|register|remove|restore|run|save|say|set|split|switch|take|try|use|wait|write) )"
)
"""The separator before a sentence's advice. After a colon, the advice starts with one of these verbs."""
RULE = re.compile(r"\bmust .*?(?=[,;] got |$)")


def row(cause: Cause) -> str:
    """Return a cause's row of the page: code, fault and remedy."""
    wrong, *advice = ADVICE.split(cause.shown, maxsplit=1)
    remedy = advice[0] if advice else "".join(f"it {rule}" for rule in RULE.findall(wrong)[:1])
    return f'| <a id="{cause.code.lower()}"></a>{cause.code} | {cell(wrong)} | {cell(remedy)} |'


def package(path: str) -> str:
    """Return the package that a path belongs to."""
    *folders, _ = path.split("/")
    return "commands" if folders == ["fedpeft"] else ".".join(folders[:2])


def page(causes: dict[str, Cause]) -> str:
    """Return docs/errors.md."""
    lines = [INTRODUCTION]
    for name, family in FAMILIES.items():
        groups: dict[str, list[Cause]] = {}
        for cause in causes.values():
            if family_of(cause.code) == name:
                groups.setdefault(package(cause.paths[0]), []).append(cause)
        if not groups:
            continue
        about = (family.__doc__ or "").splitlines()[0]
        lines += [f"## {family.uncoded[:3]}...: {name}", "", about, "", REMEDIES[name], ""]
        for place, group in sorted(groups.items()):
            lines += [f"### {name} in {place}", "", "| code | what is wrong | what to do |", "|---|---|---|"]
            lines += [*map(row, group), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write both files; return 1, and write nothing, if a code is missing or wrong."""
    causes, faults = collect(ROOT)
    before = (ROOT / GOLDEN).read_text(encoding="utf-8") if (ROOT / GOLDEN).exists() else ""
    if faults:
        print(*faults, sep="\n")
        print("next free:", ", ".join(f"{name} {free(family, before)}" for name, family in FAMILIES.items()))
        return 1
    (ROOT / GOLDEN).write_text(golden(causes, before), encoding="utf-8")
    (ROOT / PAGE).write_text(page(causes), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

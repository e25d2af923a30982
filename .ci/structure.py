"""Print structural measures of the production code, from its syntax trees.

    python .ci/structure.py [TREE ...]     the measures, with a column for each tree
    python .ci/structure.py --list         the overrides, complex functions and nested conditions of this tree

A tree is a checkout; the default is this one. Two trees are printed side by side, so that changes can be compared.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("fedpeft", "strategies", "clients")
GENERATED = "v2_pb2"
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.match_case)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
LOOPS = tuple(f"fedpeft/{package}/rounds.py" for package in ("server", "rounds"))
"""The files of the round loop, in older and newer trees."""


class Code:
    """All production modules of a checkout, parsed."""

    def __init__(self, root: Path) -> None:
        """Parse all modules below `root`."""
        paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
        self.texts = {
            str(path.relative_to(root)): path.read_text(encoding="utf-8")
            for path in paths
            if GENERATED not in path.name
        }
        self.modules = {name: ast.parse(text) for name, text in self.texts.items()}

    def walk(self) -> Iterator[ast.AST]:
        """Yield every node of every module."""
        for module in self.modules.values():
            yield from ast.walk(module)


def count_lines(code: Code) -> int:
    """Count the lines of all modules."""
    return sum(text.count("\n") for text in code.texts.values())


def count_tokens(code: Code) -> int:
    """Count tokens without comments, docstrings and layout, in thousands."""
    return round(sum(count_code_tokens(text) for text in code.texts.values()) / 1000)


def count_code_tokens(text: str) -> int:
    """Count the tokens of one module without comments, docstrings and layout."""
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in LAYOUT]
    docstrings = sum(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for node in ast.walk(ast.parse(text))
    )
    return len(tokens) - docstrings


def is_feature_guard(node: ast.AST) -> bool:
    """Return whether a node checks if an optional feature exists: `x.y is None`, `x.y is not None`."""
    return (
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Is | ast.IsNot)
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value is None
        and isinstance(node.left, ast.Attribute)
    )


def count_guards(code: Code) -> int:
    """Count the questions whether an attribute is None."""
    return sum(map(is_feature_guard, code.walk()))


def count_loop_guards(code: Code) -> int:
    """Count the same in the module of the round loop."""
    return sum(is_feature_guard(n) for name in LOOPS if name in code.modules for n in ast.walk(code.modules[name]))


def count_loop_parameters(code: Code) -> int:
    """Count the parameters of the constructor of `Server`."""
    for name in LOOPS:
        for node in ast.walk(code.modules.get(name, ast.Module([], []))):
            if isinstance(node, ast.ClassDef) and node.name == "Server":
                constructors = [item for item in node.body if isinstance(item, FUNCTIONS) and item.name == "__init__"]
                if constructors:
                    return len(constructors[0].args.args) + len(constructors[0].args.kwonlyargs) - 1
                return sum(isinstance(item, ast.AnnAssign) for item in node.body)
    return 0


def list_single_overrides(code: Code) -> list[str]:
    """List methods of base classes that exactly one subclass overrides; a base class has at least three subclasses."""
    classes = {node.name: node for node in code.walk() if isinstance(node, ast.ClassDef)}
    bases = {
        name: {ast.unparse(base).split("[")[0] for base in node.bases} & set(classes) for name, node in classes.items()
    }
    methods = {
        name: {item.name for item in node.body if isinstance(item, FUNCTIONS) and not item.name.startswith("__")}
        for name, node in classes.items()
    }

    def find_ancestors(name: str) -> set[str]:
        return set().union(*({base} | find_ancestors(base) for base in bases[name]))

    overriders: dict[tuple[str, str], list[str]] = defaultdict(list)
    subclasses: dict[str, int] = defaultdict(int)
    for name in classes:
        for ancestor in find_ancestors(name):
            subclasses[ancestor] += 1
            for method in methods[name] & methods[ancestor]:
                overriders[ancestor, method].append(name)
    return sorted(
        f"{owner}.{method} ({names[0]})"
        for (owner, method), names in overriders.items()
        if len(names) == 1 and subclasses[owner] >= 3
    )


def compute_complexity(function: ast.AST) -> int:
    """Return the cyclomatic complexity of a function, without that of functions inside it."""
    complexity, waiting = 1, list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (*FUNCTIONS, ast.Lambda)):
            continue
        complexity += isinstance(node, BRANCHES)
        complexity += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        complexity += len(node.ifs) if isinstance(node, ast.comprehension) else 0
        waiting += ast.iter_child_nodes(node)
    return complexity


def list_complex_functions(code: Code) -> list[str]:
    """List functions with a cyclomatic complexity above 15, the most complex first."""
    found = [
        (compute_complexity(node), f"{name}:{node.lineno} {node.name}")
        for name, module in code.modules.items()
        for node in ast.walk(module)
        if isinstance(node, FUNCTIONS)
    ]
    return [f"{place} ({complexity})" for complexity, place in sorted(found, reverse=True) if complexity > 15]


def count_comprehensions(code: Code) -> float:
    """Return the comprehensions per 100 lines of code, without empty lines, comments and docstrings."""
    lines = {
        (name, node.lineno)
        for name, module in code.modules.items()
        for node in ast.walk(module)
        if isinstance(node, ast.stmt | ast.expr)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    }
    return round(100 * sum(isinstance(node, COMPREHENSIONS) for node in code.walk()) / len(lines), 1)


def list_nested_conditions(code: Code) -> list[str]:
    """List conditional expressions inside conditional expressions."""
    return [
        f"{name}:{outer.lineno} {ast.unparse(outer)}"
        for name, module in code.modules.items()
        for outer in ast.walk(module)
        if isinstance(outer, ast.IfExp)
        for inner in (outer.body, outer.orelse, outer.test)
        if isinstance(inner, ast.IfExp)
    ]


def count_top_names(code: Code) -> int:
    """Count the modules and packages directly below `fedpeft`."""
    tops = {Path(name).parts[1].removesuffix(".py") for name in code.modules if name.startswith("fedpeft/")}
    return len(tops - {"__init__", "__main__"})


def name_module(path: str) -> str:
    """Return the import name of a module, given its path in a checkout; a package ends with `.__init__`."""
    name = path.removesuffix(".py").replace("/", ".")
    return name if name.startswith("fedpeft.") else f"fedpeft.{name}"


def walk_imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield module and name of each import that runs with a module's own, so not of functions or for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom):
            yield from ((child.module or "", alias.name) for alias in child.names)
        elif not isinstance(child, FUNCTIONS) and not (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        ):
            yield from walk_imports(child)


def find_imports(code: Code) -> dict[str, set[str]]:
    """Return the modules that each module imports; names of packages stand for the modules that define them."""
    modules = {name_module(path): module for path, module in code.modules.items()}
    packages = {name.removesuffix(".__init__"): module for name, module in modules.items() if name.endswith("__init__")}
    faces = {(package, name): source for package, module in packages.items() for source, name in walk_imports(module)}
    imports: dict[str, set[str]] = {}
    for module in modules.keys() - {f"{package}.__init__" for package in packages}:
        lines = list(walk_imports(modules[module]))
        places = {f"{source}.{name}" for source, name in lines} | {faces.get(line, line[0]) for line in lines}
        imports[module] = places & modules.keys()
    return imports


def count_longest_chain(code: Code) -> int:
    """Count the modules of the longest chain in which each module imports the next one."""
    imports, lengths = find_imports(code), {}

    def measure(name: str) -> int:
        if name not in lengths:
            lengths[name] = 0  # ends a circle
            lengths[name] = 1 + max(map(measure, imports[name]), default=0)
        return lengths[name]

    return max(map(measure, imports))


def count_participles(code: Code) -> int:
    """Count functions and methods whose name is one bare participle, by its ending."""
    names = [node.name.strip("_") for node in code.walk() if isinstance(node, FUNCTIONS)]
    return sum("_" not in name and name.endswith(("ed", "ing")) for name in names)


ROWS: dict[str, Callable[[Code], float]] = {
    "production lines": count_lines,
    "production files": lambda code: len(code.modules),
    "code tokens, in thousands": count_tokens,
    "names directly below fedpeft/": count_top_names,
    "longest import chain": count_longest_chain,
    "round loop: `x.y is None`": count_loop_guards,
    "round loop: parameters of Server": count_loop_parameters,
    "all code: `x.y is None`": count_guards,
    "base-class methods with one overrider": lambda code: len(list_single_overrides(code)),
    "functions with complexity above 15": lambda code: len(list_complex_functions(code)),
    "comprehensions per 100 code lines": count_comprehensions,
    "nested conditional expressions": lambda code: len(list_nested_conditions(code)),
    "functions named by one participle": count_participles,
}


LISTS: dict[str, Callable[[Code], list[str]]] = {
    "base-class methods with one overrider": list_single_overrides,
    "functions with complexity above 15": list_complex_functions,
    "nested conditional expressions": list_nested_conditions,
}


def main(trees: list[str]) -> None:
    """Print a Markdown table with one column per tree, or with `--list` the places in this tree."""
    if trees == ["--list"]:
        code = Code(ROOT)
        for name, list_places in LISTS.items():
            print(f"{name}:", *list_places(code), sep="\n    ")
        return
    for tree in trees:
        if not Path(tree, FOLDERS[0]).is_dir():
            sys.exit(f"{tree} has no folder {FOLDERS[0]}/; give the folder of a checkout")
    codes = [Code(Path(tree)) for tree in trees or [str(ROOT)]]
    print("| counted by syntax tree | " + " | ".join(Path(tree).resolve().name for tree in trees or [str(ROOT)]) + " |")
    print("|---|" + "---:|" * len(codes))
    for name, count in ROWS.items():
        print(f"| {name} | " + " | ".join(f"{count(code):,}" for code in codes) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])

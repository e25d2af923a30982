"""Tests of code that a model wrote, in isolation.

The code and its tests run in two isolated processes (`fedpeft.models.answers.code_peers`). The verdict comes from the
second one, through a pipe that the code does not have: code that ends its process, replaces builtins or prints
"passed" fails. The code never sees expected values.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from fedpeft.errors import RunError
from fedpeft.machine.sandbox import IsolatedProgram, Limits
from fedpeft.models.answers import code_peers

FENCE = re.compile(r"```[A-Za-z0-9]*[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
"""Pattern of a block of code in an answer."""

LONGEST = 20_000
"""Most characters of an answer that are read as code."""

MOST_PARSES = 10
"""How often a text of the longest length is parsed at most; shorter ones more often."""


def passes_tests(asked: str, said: str, tests: str, limits: Limits = Limits()) -> bool:  # noqa: B008
    """Return whether the code in an answer passes all tests.

    Args:
        asked: the question; code that the answer may continue.
        said: the answer: a program, with or without text around it.
        tests: a program that raises an error if the code is wrong; it calls the code's functions by name. Tests that
            call nothing pass for no answer.
        limits: limits of each of the two processes.

    Raises:
        RunError: the processes could not be isolated.
    """
    names = find_called_names(tests)
    program = find_program(asked, said, names) if names else None
    return program is not None and run_tests(program, tests, names, limits)


def find_called_names(tests: str) -> set[str]:
    """Return the names that tests use and do not define; empty if they are not Python."""
    tree = _parse(tests)
    if isinstance(tree, int):
        return set()
    nodes = list(ast.walk(tree))
    loaded = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return loaded - _find_defined(nodes) - set(dir(builtins)) - {"__name__"}


def has_uncalled_check(tests: str) -> bool:
    """Return whether tests have HumanEval's form: they define `check(candidate)`, and never call it."""
    tree = _parse(tests)
    if isinstance(tree, int):
        return False
    defined = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    used = any(isinstance(node, ast.Name) and node.id == "check" for node in ast.walk(tree))
    return defined and not used


def _find_defined(nodes: list[ast.AST]) -> set[str]:
    defined: set[str] = set()
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                defined.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                defined.add(name)
            case ast.alias(name=name, asname=other):
                defined.add(other or name.partition(".")[0])
    return defined


def _parse(text: str) -> ast.Module | int:
    """Return the syntax tree of a program; if it is not Python, the line of its first error, or 0 without one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)  # not compiled: each `finally` doubles the code of those in it
    except SyntaxError as error:
        return error.lineno or 0
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return 0
    return min(_find_stray_returns(tree), default=tree)


def _find_stray_returns(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of each `return` or `yield` outside of functions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom):
            yield node.lineno
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def find_program(asked: str, said: str, names: set[str]) -> str | None:
    """Return the program in an answer that defines all `names`, or None.

    It is the answer's first block of code, or the whole answer, up to the last line with which it is Python. If the
    answer continues code in the question, the program begins with the question.
    """
    block = FENCE.search(said[:LONGEST])
    text = block.group(1) if block else said[:LONGEST]
    best: tuple[int, str] = (0, "")
    for start in ("", asked + "\n", asked + "\n    "):
        before = start.count("\n")
        count, program = _find_longest_beginning(start + text, names, before + best[0])
        if program is not None:
            best = (count - before, program)
    return best[1] if best[0] else None


def _find_longest_beginning(text: str, names: set[str], least: int) -> tuple[int, str | None]:
    """Return the lines and text of the longest beginning that is Python and defines all `names`; None: there is none.

    An answer may have thousands of lines, so not each beginning is parsed: the lines after an error cannot repair it,
    and a shorter program defines no more names. After `MOST_PARSES` texts, it gives up.

    Args:
        text: the text.
        names: names of functions.
        least: number of lines that the beginning must exceed.
    """
    lines = text.split("\n")
    count = len(lines)
    left = MOST_PARSES * max(LONGEST, len(text))
    while count > least and left > 0:
        program = "\n".join(lines[:count])
        left -= len(program)
        tree = _parse(program)
        if not isinstance(tree, int):
            return count, program if names <= _find_defined(list(ast.walk(tree))) else None
        count = min(count - 1, tree or count)
    return 0, None


def find_first_function(said: str) -> str | None:
    """Return the syntax tree of the first function in an answer, as a text; None: it has none.

    A tree that is too deep to be written, such as that of 1 + 1 + 1 + ..., is given by its source.
    """
    program = find_program("", said, set()) or ""
    tree = _parse(program)
    assert not isinstance(tree, int)
    function = next((node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)), None)
    if function is None:
        return None
    try:
        return ast.dump(function)
    except RecursionError:
        return ast.get_source_segment(program, function)


def run_tests(program: str, tests: str, names: set[str], limits: Limits) -> bool:
    """Return whether tests pass that call the functions `names` of a program.

    Raises:
        RunError: the processes could not be isolated.
    """
    peers = Path(code_peers.__file__).read_text(encoding="utf-8")
    with ExitStack() as stack:
        call_reading, call_writing = os.pipe()
        reply_reading, reply_writing = os.pipe()
        verdict_reading, verdict_writing = os.pipe()
        verdict = stack.enter_context(closing(os.fdopen(verdict_reading, "rb")))
        theirs = [call_reading, call_writing, reply_reading, reply_writing, verdict_writing]
        try:
            code = {"main.py": f"{peers}\nanswer_calls()\n", "code.py": program}
            worker = stack.enter_context(IsolatedProgram(code, [call_reading, reply_writing], limits))
            judging = {"main.py": f"{peers}\njudge()\n", "tests.py": tests, "names.json": json.dumps(sorted(names))}
            channels = [reply_reading, call_writing, verdict_writing]
            judge = stack.enter_context(IsolatedProgram(judging, channels, limits))
        finally:
            for number in theirs:
                os.close(number)
        ended = judge.wait()
        said = verdict.read(len(code_peers.PASSED) + 1)
        for end in (ended, *([worker.wait()] if not said else [])):
            if end.startswith("setup"):
                raise RunError(f"FP5405 code could not be isolated: {end.removeprefix('setup ')}")
    return ended == "exit 0" and said == code_peers.PASSED

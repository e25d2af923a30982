"""Metrics of code: what counts as a repair, which part of an answer is the program, and code that runs in isolation."""

from __future__ import annotations

import ast
import builtins
import json
from functools import partial

import pytest

from fedpeft.errors import ConfigError
from fedpeft.evaluate.evaluation import EvaluationRequest
from fedpeft.machine.sandbox import check_isolation
from fedpeft.models.answers import code_peers, code_tests
from fedpeft.models.answers.code_tests import find_called_names, find_program, passes_tests
from fedpeft.models.answers.exam import Exam
from fedpeft.models.answers.metric import check_run_code, parse_metrics
from fedpeft.models.answers.questions import QuestionForm, parse_question, read_questions
from fedpeft.parts.families import METRICS
from tests.refusals import refuses

ADD = "def add(a, b):\n    return a + b"
TESTS = "assert add(1, 2) == 3\nassert add([1], [2]) == [1, 2]\nassert add((1,), ()) == (1,)"


def is_isolated() -> bool:
    try:
        check_isolation()
    except ConfigError:
        return False
    return True


isolated = pytest.mark.skipif(not is_isolated(), reason="this machine can't isolate processes")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (ADD, 1.0),
        ("Here it is:\n```python\n# adds\ndef add(a, b):\n\n    return (a + b)\n```\nThat is all.", 1.0),
        (ADD + "\n\ndef more(:", 1.0),  # an answer that was cut
        (ADD.replace("+", "-"), 0.0),
        ("def add(b, a):\n    return b + a", 0.0),  # other text that does the same needs tests
        ("I do not know.", 0.0),
        ("", 0.0),
    ],
)
def test_a_repair_is_the_original_as_a_syntax_tree(said, expected):
    assert METRICS.build("repair").score(said, [ADD]) == expected


@pytest.mark.parametrize(
    ("asked", "said", "program"),
    [
        ("", ADD, ADD),
        ("", f"```\n{ADD}\n```", ADD + "\n"),
        ("", ADD + "\nprint(1", ADD),
        ("def add(a, b):", "return a + b", "def add(a, b):\n    return a + b"),
        ("def add(a, b):\n    c = a", "    return c + b\nsome words", "def add(a, b):\n    c = a\n    return c + b"),
        ("Write add.", "add is easy", None),
        ("", "def other():\n    pass", None),
    ],
)
def test_the_program_of_an_answer(asked, said, program):
    assert find_program(asked, said, {"add"}) == program


@pytest.mark.parametrize(
    "said", ["a = 1\n" * 2000, "a = 1\n" * 1000 + "$\n" * 1000, "a = 1\n" * 1000 + "return\n" * 1000]
)
def test_a_long_answer_is_parsed_a_few_times(said, monkeypatch):
    """An answer that repeats a line would otherwise take minutes, outside of every limit of time."""
    parsed = []
    monkeypatch.setattr(code_tests, "_parse", lambda text, parse=code_tests._parse: parsed.append(text) or parse(text))
    assert find_program("asked", said, {"add"}) is None
    assert len(parsed) < 10
    assert find_program("", f"{ADD}\n{said}", {"add"}).startswith(ADD)


def test_lines_that_wait_for_more_are_dropped_a_bounded_number_of_times(monkeypatch):
    parsed = []
    monkeypatch.setattr(code_tests, "_parse", lambda text, parse=code_tests._parse: parsed.append(text) or parse(text))
    assert find_program("", "@a\n" * 5000, {"add"}) is None
    assert len(parsed) < 50
    assert find_program("", f"{ADD}\n" + "@a\n" * 50, {"add"}) == ADD


def nest_finally(depth: int) -> str:
    lines = ["def add(a, b):"]
    for level in range(1, depth + 1):
        lines += [f"{' ' * level}try: a", f"{' ' * level}finally:"]
    return "\n".join([*lines, f"{' ' * (depth + 1)}b"])


def test_an_answer_is_never_compiled_here(monkeypatch):
    """Each `finally` doubles the code of those in it: 24 levels would take 50 GB."""
    monkeypatch.setattr(builtins, "compile", partial(compile_trees, compile))
    assert find_program("", nest_finally(24), {"add"}) == nest_finally(24)
    assert METRICS.build("repair").score(nest_finally(24), [ADD]) == 0.0


def compile_trees(original, text, name, mode, flags=0, **named):
    assert flags & ast.PyCF_ONLY_AST
    return original(text, name, mode, flags, **named)


@pytest.mark.parametrize("line", ["return 1", "if a:\n    x = yield", "class A:\n    yield from a"])
def test_a_program_ends_before_a_return_outside_of_functions(line):
    inside = f"{ADD}\nf = lambda: (yield)"
    assert find_program("", f"{inside}\n{line}\nb = 1", {"add"}) == inside


def test_a_function_that_repeats_itself_is_compared_too():
    deep = "def add(a, b):\n" + "    if a: pass\n" + "    elif a: pass\n" * 900
    metric = METRICS.build("repair")
    assert metric.score(deep, [ADD]) == 0.0
    assert metric.score(f"{deep}\n", [deep]) == 1.0


def test_tests_call_the_names_that_they_do_not_define():
    tests = "import math\ndef check(f):\n    for x in [1]:\n        assert f(x) == math.sqrt(x)\ncheck(root)"
    assert find_called_names(tests) == {"root"}
    assert find_called_names("these are words") == set()


@pytest.mark.parametrize("value", [None, True, 1, -2.5, "é", b"\x00", [1, (2, {3})], {"a": {1: frozenset({2})}}])
def test_plain_values_cross_unchanged(value):
    assert code_peers.decode(json.loads(json.dumps(code_peers.encode(value)))) == value


def test_an_iterator_crosses_as_one_and_views_as_such():
    """Tests that expect a list must fail for them, as they do without isolation."""

    def cross(value):
        return code_peers.decode(json.loads(json.dumps(code_peers.encode(value))))

    found = cross(map(str, [1, (2,)]))
    assert found != ["1", "(2,)"]
    assert next(found) == "1"
    assert list(found) == ["(2,)"]
    assert cross(range(1, 9, 3)) == range(1, 9, 3)
    table = {"a": 1, "b": 1}
    assert cross(table.keys()) == table.keys()
    assert cross(table.items()) == table.items()
    assert cross(table.values()) != [1, 1]
    assert list(cross(table.values())) == [1, 1]


def test_nothing_else_crosses():
    with pytest.raises(TypeError):
        code_peers.encode(object())
    assert type(code_peers.build_error("StopIteration", "")) is RuntimeError
    assert type(code_peers.build_error("SystemExit", "")) is RuntimeError
    assert type(code_peers.build_error("UnicodeDecodeError", "")) is RuntimeError
    assert type(code_peers.build_error("KeyError", "x")) is KeyError


def test_code_runs_only_if_the_user_allows_it():
    with refuses("FP1682", "pass_at_1"):
        check_run_code(parse_metrics("pass_at_1"), run_code=False)
    with refuses("FP1682", "pass_at_1"):
        METRICS.build("pass_at_1").score(ADD, [ADD])
    with refuses("FP1683", "exact_match, f1"):
        check_run_code(parse_metrics("exact_match, f1"), run_code=True)
    with refuses("FP1684", "--flowertune"):
        EvaluationRequest(questions="a.jsonl", track="nlp", run_code=True)
    check_run_code(parse_metrics("repair"), run_code=False)


def read(tmp_path, **columns):
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Write add.", "answer": ADD, **columns}))
    return tuple(read_questions(str(tmp_path / "q.jsonl"), QuestionForm(False)))


HUMAN_EVAL = "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"


def test_tests_of_human_eval_call_the_entry_point(tmp_path):
    (question,) = read(tmp_path, tests=HUMAN_EVAL, entry_point="add")
    assert find_called_names(question.tests) == {"add"}
    for called in (f"{HUMAN_EVAL}check(add)", TESTS, "these are words"):
        assert read(tmp_path, tests=called, entry_point="other")[0].tests == called
    for wrong in ({}, {"entry_point": "add()"}, {"entry_point": 1}):
        with refuses("FP3581", "check(candidate)"):
            read(tmp_path, tests=HUMAN_EVAL, **wrong)


@isolated
def test_pass_at_1_runs_tests_of_human_eval(tmp_path):
    exam = Exam(read(tmp_path, tests=HUMAN_EVAL, entry_point="add") * 2, "pass_at_1", 8, run_code=True)
    exam.check_tests()
    assert exam.compute_measures([(ADD,), (ADD.replace("+", "*"),)]) == {"pass_at_1": 0.5}


@isolated
def test_a_right_answer_must_pass_its_own_tests(tmp_path):
    with refuses("FP3362", "pass_at_1"):
        Exam(read(tmp_path), "pass_at_1", 8, run_code=True).check_tests()
    with refuses("FP3363", "question 0"):
        Exam(read(tmp_path, tests="assert add(1, 1) == 3"), "pass_at_1", 8, run_code=True).check_tests()
    with refuses("FP3364", "choices"):
        Exam(read(tmp_path, choices=[ADD, "b"]), "repair", 8, run_code=True).check_tests()


@isolated
def test_pass_at_1_is_the_share_of_answers_that_pass(tmp_path):
    exam = Exam(read(tmp_path, tests=TESTS.split("\n")) * 2, "pass_at_1", 8, run_code=True)
    exam.check_tests()
    other = "```python\ndef add(x, y):\n    print('hello')\n    return x + y\n```"
    assert exam.compute_measures([(other,), (ADD.replace("+", "*"),)]) == {"pass_at_1": 0.5}


@isolated
def test_a_repair_that_differs_counts_if_tests_tell_right_from_wrong(tmp_path):
    defective = ADD.replace("+", "-")
    row = json.dumps({"prompt": f"# defective:\n{defective}\n", "answer": ADD, "tests": TESTS})
    other = "def add(first, second):\n    return first + second"
    metric, question = METRICS.build("repair"), parse_question(row)
    assert metric.score(other, question.right) == 0.0
    assert metric.score_tests(question.asked, other, question.right, question.tests) == 1.0
    assert metric.score_tests(question.asked, defective, question.right, question.tests) == 0.0
    weak = "assert add(0, 0) == 0"
    assert metric.score_tests(question.asked, other, question.right, weak) == 0.0


UNCALLED = "def test_add():\n    assert add(1, 2) == 3\n"
UNITTEST = (
    "import unittest\nclass T(unittest.TestCase):\n    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n"
    "if __name__ == '__main__':\n    unittest.main()\n"
)


@isolated
@pytest.mark.parametrize("tests", ["assert True", "", "assert add(1, 2) =", UNCALLED, UNITTEST])
def test_tests_that_call_nothing_pass_for_no_code(tests):
    assert not passes_tests("", ADD, tests)


@isolated
def test_an_error_crosses_by_its_type():
    code = "def f(x):\n    raise KeyError(x)"
    assert passes_tests("", code, "try:\n    f(1)\nexcept KeyError:\n    pass\nelse:\n    assert False")

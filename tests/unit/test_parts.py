import runpy
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from fedpeft.errors import ConfigError
from fedpeft.parts import Family, check_settings, setting
from fedpeft.parts.families import PARTITIONS, PEFT_METHODS, strategies
from fedpeft.parts.spec import Spec, parse_spec, split_outside_parentheses
from tests.refusals import refuses


@dataclass(frozen=True)
class Example:
    needed: int = setting(MISSING, "rows", low=1)
    share: float = setting(0.5, "a share", above=0, high=1)
    kind: str = setting("a", "a kind", choices=("a", "b"))
    names: str | tuple[str, ...] = setting("all", "names")


def test_a_spec_reads_as_name_and_literals():
    assert parse_spec("lora(rank=8, targets=('query', 'value'), kind=fast)") == Spec(
        "lora", {"rank": 8, "targets": ("query", "value"), "kind": "fast"}
    )
    assert parse_spec("file(path='class=from', text=from, label= class, a=None)").settings == {
        "path": "class=from", "text": "from", "label": "class", "a": None}  # fmt: skip
    assert parse_spec("20newsgroups").name == "20newsgroups"
    assert parse_spec("file:/data/a(b).csv") == Spec("file", {}, "/data/a(b).csv")


@pytest.mark.parametrize("text", ["", "lora(", "lora(rank=)", "lora(rank=8, rank=4)", "a.b", "1 + 1", "**x"])
def test_what_is_not_a_spec_is_refused(text):
    with pytest.raises(ConfigError):
        parse_spec(text)


@pytest.mark.parametrize("text", ["lora(rank=[x for x in y])", "lora(rank=1+1j*a)", "lora(rank=a.b(1))"])
def test_a_value_is_a_literal_and_never_code(text):
    with refuses("FP1421"):
        parse_spec(text)


def test_a_text_with_dots_is_told_to_stand_in_quotes():
    with refuses("FP1421"):
        parse_spec("lora(targets=attention.self.value)")
    assert parse_spec("lora(targets='attention.self.value')").settings == {"targets": "attention.self.value"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user_dp(epsilon=8", "; its parentheses don't balance"),
        ("lora(targets=')'", "; its parentheses don't balance"),
        ("lora)8(", "; its parentheses don't balance"),
        ("topk(0.1) quantize(4)", ""),
        ("int8/rans", ""),
        ("lora(rank 8)", "; a value with a space, or signs other than letters, digits and _, needs quotes"),
    ],
)
def test_what_is_not_a_spec_is_told_what_is_wrong_with_it(text, words):
    with pytest.raises(ConfigError) as told:
        parse_spec(text)
    assert str(told.value) == f"FP1420 {text!r} is not of the form name(key=value, ...){words}"


@pytest.mark.parametrize("text", ["lora(rank=f(1))", "lora(rank=__import__('os'))"])
def test_a_value_in_a_part_s_form_is_a_text_that_a_setting_has_to_take(text):
    value = next(iter(parse_spec(text).settings.values()))
    assert text == f"lora({next(iter(parse_spec(text).settings))}={value})"
    with pytest.raises(ConfigError):
        PEFT_METHODS.build(text)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ("FP1226", "needed")),
        ({"needed": 0}, ("FP1227", "at least 1, got 0")),
        ({"needed": 1.5}, ("FP1227", "int")),
        ({"needed": True}, ("FP1227", "int")),
        ({"needed": 1, "share": 0.0}, ("FP1227", "above 0")),
        ({"needed": 1, "share": float("nan")}, ("FP1519", "finite", float("nan"))),
        ({"needed": 1, "kind": "c"}, ("FP1227", "one of 'a', 'b")),
        ({"needed": 1, "shar": 0.5}, ("FP1225", "did you mean 'share")),
    ],
)
def test_settings_are_checked_by_name_type_and_range(given, words):
    with refuses(*words):
        check_settings("example", Example, given)


@dataclass(frozen=True)
class Counted:
    count: int = setting(MISSING, "how many", low=1)
    argument: ClassVar[str] = "count"


@dataclass(frozen=True)
class Several:
    names: tuple[str, ...] = setting(MISSING, "names")
    argument: ClassVar[str] = "names"


def test_a_value_without_a_key_is_the_setting_that_a_part_declares(monkeypatch):
    family = Family("fedpeft.aggregation.heads", "thing")
    monkeypatch.setattr(family, "part", {"steps": Counted, "tasks": Several, "example": Example}.__getitem__)
    assert family.build("steps(10)") == family.build("steps(count=10)") == Counted(10)
    assert family.build("tasks(tiny(seed=1), b, '20newsgroups')") == Several(("tiny(seed=1)", "b", "20newsgroups"))
    for text, words in (
        ("steps(1, 2)", ("FP1237", "steps")),
        ("steps(1, count=2)", ("FP1237", "steps")),
        ("steps(x)", ("FP1227", "count", "int")),
        ("steps", ("FP1226", "count")),
        ("example(8)", ("FP1236", "8")),
    ):
        with refuses(*words):
            family.build(text)


@dataclass(frozen=True)
class Lettered:
    letter: Literal["a", "b"] = setting("a", "a letter")


def test_an_annotation_that_no_value_can_be_checked_against_is_named():
    with refuses("FP1990", "lettered", "letter", "Literal", "choices"):
        check_settings("lettered", Lettered, {"letter": "b"})


def test_settings_are_converted():
    values = check_settings("example", Example, {"needed": 2, "share": 1, "names": ["x"]})
    assert values == {"needed": 2, "share": 1.0, "names": ("x",)}
    assert isinstance(values["share"], float)


def test_an_unknown_part_names_the_nearest_and_all_legal_ones():
    with refuses("FP1231", "did you mean 'dirichlet", "iid"):
        PARTITIONS.build("dirchlet(alpha=1)")


def test_pipelines_split_outside_of_parentheses_only():
    assert split_outside_parentheses("a(x='|') | b", "|") == ["a(x='|')", "b"]


@pytest.mark.parametrize(
    ("family", "text", "words"),
    [
        (strategies, "fedavg", ("FP1230", "is called fedit")),
        (strategies, "FedAvg", ("FP1230", "is called fedit")),
        (strategies, "fedprox", ("FP1230", "--drift")),
        (strategies, "florist", ("FP1230", "flexlora(energy=0.9)")),
        (strategies, "la_lora", ("FP1230", "--drift la_lora")),
        (PEFT_METHODS, "LoRA", ("FP1231", "did you mean 'lora")),
        (PEFT_METHODS, "lora(r=8)", ("FP1223", "r", "rank")),
        (PEFT_METHODS, "lora(lora_alpha=8)", ("FP1223", "alpha")),
        (PEFT_METHODS, "lora(target_modules=all)", ("FP1223", "targets")),
        (PARTITIONS, "natural(0.5)", ("FP1236", "0.5", "natural")),
    ],
)
def test_the_names_of_other_libraries_are_understood(family, text, words):
    with refuses(*words):
        family.build(text)


def test_defaults_and_legal_ranges_are_those_of_the_golden_list():
    listing = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "settings.py"))
    settings = list(listing["list_settings"]())
    assert len(settings) > 500
    assert settings == listing["GOLDEN"].read_text(encoding="utf-8").splitlines(), "run python .ci/settings.py"

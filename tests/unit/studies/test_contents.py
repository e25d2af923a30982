"""Runs with equal settings that other contents of the same file have made: a report tells them apart."""

from dataclasses import replace

import pytest

from fedpeft.reporting.user_files import OwnFile
from fedpeft.study.page import PageSection
from fedpeft.study.results import Result, select_latest
from fedpeft.study.sections import Section, assign_points, get_runs_baseline
from tests.studies.made import made_result


def runs_alone(*results: Result) -> Section:
    told = assign_points(select_latest([replace(r, study="", point={}) for r in results]))
    return Section("runs", "", told, get_runs_baseline(told))


def test_two_versions_of_ones_own_rule_are_two_methods() -> None:
    one, other = (
        replace(made_result({}, 0, skill, 1.0), plugin=({"source": "/home/me/rules.py", "sha256": digest * 32},))
        for skill, digest in ((0.6, "aa"), (0.7, "bb"))
    )
    assert [m.name for m in runs_alone(one, other).methods] == [f"rules.py {12 * letter}" for letter in "ab"]
    assert len(runs_alone(one, one).results) == 1
    packages = [
        replace(one, plugin=({"source": "rules", "version": f"1.5.dev{number}+g{number}abcdef"},))
        for number in (12, 13)
    ]
    assert [m.name for m in runs_alone(*packages).methods] == ["rules 1.5.dev12+g12abcdef", "rules 1.5.dev13+g13abcdef"]


@pytest.mark.medium
def test_runs_of_a_file_of_before_are_not_paired_with_those_of_today() -> None:
    made = [
        replace(
            made_result({"strategy": rule}, 0, skill, 1.0), made_of=(OwnFile("minilm", None), OwnFile("a.csv", 64 * of))
        )
        for of, rule, skill in (("a", "fedit", 0.6), ("a", "krum", 0.5), ("b", "fedit", 0.7), ("b", "krum", 0.8))
    ]
    section = runs_alone(*made)
    assert len(section.contexts) == 2
    [table] = [t for t in PageSection.from_section(section).tables if t.name == "comparisons"]
    assert [(row["method"], row["baseline"]) for row in table.data] == [
        (f"a.csv {of * 12}: krum", f"a.csv {of * 12}: fedit") for of in "ab"
    ]


def test_two_contents_of_the_file_of_clients_are_two_methods_that_are_compared() -> None:
    """Neither is taken for a seed of the other, nor for the same run again."""
    one, other = (
        replace(
            made_result({"clients": "/home/me/clients.toml"}, 0, skill, 1.0),
            made_of=(OwnFile("auto", None), OwnFile("/home/me/clients.toml", 64 * digest)),
        )
        for skill, digest in ((0.6, "a"), (0.7, "b"))
    )
    section = runs_alone(one, other)
    assert [m.name for m in section.methods] == [f"clients.toml {12 * letter}" for letter in "ab"]
    assert len(section.contexts) == 1
    assert any(table.name == "comparisons" for table in PageSection.from_section(section).tables)


def test_a_run_that_does_not_tell_what_it_was_made_of_is_compared_by_its_settings() -> None:
    """As runs under privacy, and those of version 0.1."""
    own = OwnFile("a.csv", 64 * "a")
    plain = replace(made_result({}, 0, 0.6, 1.0), made_of=(own,))
    private = made_result({"privacy": "secure_sum"}, 0, 0.5, 2.0)
    section = runs_alone(plain, private)
    assert [m.name for m in section.methods] == ["privacy (empty)", "secure_sum"]
    assert len(section.contexts) == 1
    assert any(table.name == "comparisons" for table in PageSection.from_section(section).tables)
    [method] = runs_alone(made_result({}, 0, 0.6, 1.0), replace(made_result({}, 1, 0.6, 1.0), made_of=(own,))).methods
    assert sorted(method.runs) == [0, 1]


def test_a_part_of_ones_own_beside_one_that_is_there_is_known_by_its_name() -> None:
    own = ({"source": "/home/me/rules.py", "sha256": "aa" * 32},)
    mine = replace(made_result({"strategy": "mine"}, 0, 0.6, 1.0), plugin=own)
    assert [m.name for m in runs_alone(made_result({"strategy": "fedit"}, 0, 0.6, 1.0), mine).methods] == [
        "fedit",
        "mine",
    ]

"""--ranks auto: ranks from the memory, link and rows that clients' tables say."""

from __future__ import annotations

from pathlib import Path

from fedpeft.peft.adapter import AdapterShape
from fedpeft.wiring.profiles import ProfileTable, choose_ranks, create_profiles, load_groups
from tests.refusals import refuses

FORM = AdapterShape(8, 32.0)


def test_the_scarcest_resource_says_the_rank():
    tables = [
        ProfileTable(count=2, memory=16.0, link=1.0, rows=100),
        ProfileTable(count=3, memory=8.0, link=1.0, rows=90),
        ProfileTable(count=1, memory=16.0, link=0.3, rows=100),
        ProfileTable(count=1, memory=16.0, link=1.0, rows=1),
        ProfileTable(count=1, memory=2.0, rank=3, rows=5),
    ]
    chosen = choose_ranks(tables, FORM)
    assert [table.rank for table in chosen] == [8, 4, 2, 1, 3]
    profiles = create_profiles(chosen, 8, FORM)
    assert [profile.form.rank for profile in profiles] == [8, 8, 4, 4, 4, 2, 1, 3]
    assert {profile.form.scale for profile in profiles} == {FORM.scale}


def test_the_unit_of_memory_makes_no_difference():
    tables = [[ProfileTable(memory=m * unit) for m in (3.0, 1.0, 2.0)] for unit in (1, 1 / 3, 1024)]
    assert {tuple(t.rank for t in choose_ranks(own, FORM)) for own in tables} == {(8, 2, 5)}


def test_what_can_not_be_chosen_is_said():
    tables = [ProfileTable(memory=1.0), ProfileTable(memory=2.0)]
    for given, form, words in (
        (tables, None, ("FP1378",)),
        ([ProfileTable(), ProfileTable()], FORM, ("FP1379",)),
        ([ProfileTable(rows=4), ProfileTable(memory=2.0)], FORM, ("FP1380", "memory")),
    ):
        with refuses(*words):
            choose_ranks(given, form)
    with refuses("FP1384", "--clients"):
        load_groups("auto", 10, Path("nowhere"))


def test_a_file_and_auto_go_together(tmp_path):
    file = tmp_path / "clients.toml"
    file.write_text("[[profile]]\ncount = 2\nmemory = 4.0\n[[profile]]\ncount = 1\nmemory = 1.0\n")
    tables = load_groups("auto", str(file), tmp_path / "run")
    assert [t.rank for t in choose_ranks(tables, FORM)] == [8, 2]

"""Requirements of every part: a documented frozen dataclass with declared settings and a text form."""

from __future__ import annotations

import dataclasses
import inspect
import typing

import pytest

from fedpeft.commands import describe
from fedpeft.conformance import list_tested_parts
from fedpeft.conformance.conftest import build_with_defaults
from fedpeft.data.cached_rows import hash_rows
from fedpeft.data.rows import load_dataset
from fedpeft.parts import format_part, name_of
from fedpeft.parts.families import DATASETS, PARTITIONS
from fedpeft.wiring.catalogue import ALL

PARTS = [
    pytest.param(family, name, id=f"{family.group}.{name}") for family in ALL for name in list_tested_parts(family)
]
OFFLINE = {"digits", "tiny", "tiny_lm"}
"""Built-in datasets that are generated or come with a library; all datasets of a plugin are loaded."""


@pytest.mark.parametrize(("family", "name"), PARTS)
def test_it_is_a_documented_frozen_dataclass_of_its_name(family, name):
    cls = family.part(name)
    assert cls.__dataclass_params__.frozen
    assert inspect.cleandoc(cls.__doc__ or "")
    assert not (cls.__doc__ or "").startswith(f"{cls.__name__}("), "this is the text that dataclass makes up"
    assert name_of(cls) == name


@pytest.mark.parametrize(("family", "name"), PARTS)
def test_each_setting_has_a_meaning_a_type_and_a_default_in_its_range(family, name):
    cls = family.part(name)
    hints = typing.get_type_hints(cls)
    for field in (field for field in dataclasses.fields(cls) if field.init):
        assert field.metadata.get("help"), f"declare {field.name} with fedpeft.parts.setting"
        assert field.name in hints
        if field.default is not dataclasses.MISSING:
            assert field.metadata["bounds"].is_legal(field.default), field.name
    takes = getattr(cls, "argument", None)
    assert takes is None or takes in hints


@pytest.mark.parametrize(("family", "name"), PARTS)
def test_its_text_makes_it_again(family, name):
    part = build_with_defaults(family, name)
    assert format_part(part) == name
    assert family.build(format_part(part)) == part


@pytest.mark.parametrize(("family", "name"), PARTS)
def test_it_is_described(family, name, capsys):
    if any(family in families for families in describe.FAMILIES.values()):
        assert describe.main([name]) == 0
        assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [n for n in list_tested_parts(DATASETS) if n in OFFLINE or n not in DATASETS.own_names]
)
def test_a_data_set_has_the_same_rows_each_time(name):
    build_with_defaults(DATASETS, name)
    one, other = load_dataset(name), load_dataset(name)
    assert one.name
    assert one.default_model
    for rows, again in ((one.train, other.train), (one.test, other.test)):
        assert len(rows) == len(again) > 0
        assert hash_rows(rows) == hash_rows(again)
        if one.label_names is not None:
            assert rows.labels.min() >= 0
            assert rows.labels.max() < one.classes


@pytest.mark.parametrize("name", list_tested_parts(PARTITIONS))
def test_a_partition_gives_each_row_to_one_client_at_most_unless_it_says_so_and_follows_its_seed(name):
    made = build_with_defaults(PARTITIONS, name)
    rows = load_dataset("tiny").train
    one, again = made.split(rows, 6, 3), made.split(rows, 6, 3)
    shards = [one.shard(client).tolist() for client in range(6)]
    given = [row for shard in shards for row in shard]
    assert all(shards), "a client without rows"
    assert one.resampled or len(set(given)) == len(given)
    assert set(given) <= set(range(len(rows)))
    assert shards == [again.shard(client).tolist() for client in range(6)]

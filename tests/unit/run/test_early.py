"""Mistakes in flags are told before torch is imported, and before a row or a model is read."""

from __future__ import annotations

import pytest
from fedpeft.clients.attack import ATTACKS

from fedpeft.config import RunConfig
from fedpeft.errors import FedpeftError
from fedpeft.privacy.secure_sum.sum import SUMS
from fedpeft.run import catalogue, early


def test_names_are_looked_up_where_the_families_are():
    """A rule: what is looked at early is the first of a flag's families, or the only one."""
    for name, family in early.NAMES.items():
        whole = catalogue.FLAGS[name.replace("_", "-")].families[0]
        assert (family.package, family.noun, family.group) == (whole.package, whole.noun, whole.group)
        assert family.elsewhere == whole.elsewhere
        assert not whole.reserved
    assert (early.SUMS.package, early.SUMS.noun) == (SUMS.package, SUMS.noun)


@pytest.mark.parametrize("name", sorted(early.NAMES))
def test_every_part_by_name_is_let_through(name):
    for part in (*early.NAMES[name].names, *(early.SUMS.names if name == "privacy" else ())):
        early.check(RunConfig(**{name: part, "cohort": 10}))


def test_both_say_the_same_of_a_name():
    with pytest.raises(FedpeftError) as first:
        early.check(RunConfig(attack="sign_flop"))
    with pytest.raises(FedpeftError) as second:
        ATTACKS.build("sign_flop")
    assert str(first.value) == str(second.value)


@pytest.mark.parametrize(
    "given", [{"clients": 0, "cohort": 5}, {"clients": "profiles.toml", "cohort": 0.5}, {"cohort": "all"}, {}]
)
def test_what_only_the_data_can_tell_is_left_to_them(given):
    early.check(RunConfig(**given))

"""The table of the small commands: medians, the bare import beside each, and goals over it."""

from __future__ import annotations

from experiments.speed.small import Case, Sample, create_cases, format_table


def test_a_line_has_the_median_of_a_command_beside_the_bare_import():
    plain, over = Case("plain", (), 2), Case("over", (), 1.5, over_import=True)
    samples = {plain: [Sample(1, 5), Sample(9, 9), Sample(3, 6)], over: [Sample(4, 4)]}
    lines = format_table(samples, [Sample(2, 1), Sample(3, 1.5), Sample(9, 9)])
    assert lines[2:] == [
        "| plain | 2 | 3.00 | 3.00 | 6.00 |",
        "| over | import + 1.5 | 4.00 | 3.00 | 4.00 |",
        "| the bare import | | 3.00 | | 1.50 |",
    ]


def test_the_commands_are_those_with_a_goal(tmp_path):
    cases = {case.name: case for case in create_cases(tmp_path)}
    assert [case.goal for case in cases.values()] == [1, 2, 1.5, 1.5, 12, 25]
    assert cases["a rejected flag"].code == 2

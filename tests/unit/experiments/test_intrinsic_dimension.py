"""The analysis of subspaces: errors of a known law give its exponents, and gains of known size the dimension."""

from __future__ import annotations

import pytest

from experiments.intrinsic_dimension.__main__ import (
    Cell,
    build_cells,
    find_intrinsic_dimension,
    fit_errors,
    format_dimensions,
    format_fits,
)
from fedpeft.study.results import Result


def create_cell(spec, accuracy, parameters=100, examples=400):
    return Cell(spec, examples, (accuracy,), 0.5, parameters, 4.0 * parameters, 1e8)


def test_errors_of_a_power_law_give_its_exponents():
    cells = [
        create_cell(f"lora(rank={p})", 1 - 2 * p**-0.25 * n**-0.5, p, n)
        for p in (10, 100, 1000)
        for n in (100, 400, 900)
    ]
    fit = fit_errors(cells)
    assert (fit.b, fit.c) == pytest.approx((-0.25, -0.5))
    assert fit.explained == pytest.approx(1)
    assert fit.runs == 9
    one_size = fit_errors([create_cell("ia3", 1 - 3 * n**-0.5, 50, n) for n in (100, 400, 900)])
    assert one_size.b is None
    assert one_size.c == pytest.approx(-0.5)
    assert fit_errors([create_cell("ia3", 0.9, 50, n) for n in (100, 400)]) is None, "two runs, two coefficients"


def test_the_smallest_dimension_with_nine_tenths_of_the_gain_is_found():
    whole = create_cell("lora", 0.7)
    inside = [create_cell(f"subspace(dimension={d}, of=lora)", a) for d, a in ((10, 0.55), (30, 0.679), (100, 0.681))]
    assert find_intrinsic_dimension(whole, inside) == 100
    assert find_intrinsic_dimension(whole, inside[:2]) is None
    assert find_intrinsic_dimension(create_cell("lora", 0.5), inside) is None, "no gain to keep"
    lines = format_dimensions([whole, *inside])
    assert lines[-1] == "lora on 400 examples: dimension 100 keeps 90% of its gain."
    assert "| 25% |" in next(line for line in lines if "dimension=10," in line)


def test_cells_are_read_from_recorded_runs():
    summary = {
        "accuracy": 0.75,
        "baseline_accuracy": 0.5,
        "parameters": 100,
        "uplink_bytes_per_parameter": 4.0,
        "peak_memory_bytes": 5e8,
    }
    results = [
        Result(
            {"peft": "subspace(dimension=10, of=lora(rank=4))"},
            "finished",
            seed,
            point={"rows": "100"},
            summary=summary,
        )
        for seed in (0, 1)
    ]
    [cell] = build_cells(results)
    assert (cell.family, cell.examples, cell.accuracies) == ("subspace of lora(rank=4)", 100, (0.75, 0.75))
    assert (cell.gain, cell.update) == (0.25, 400.0)
    assert "too few" not in format_fits([cell])[2], "two runs and one coefficient"

"""Training in a subspace against its formula, and against the method itself if the subspace is the whole space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpeft.conformance.peft_cases import Case
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft.methods.subspace import draw_entries
from tests.refusals import refuses

INNER = "lora(rank=2, layers=1)"
ROWS = np.arange(9)


def list_moved(case):
    """Return the moved parameters' modules in order, each with the parameter's name in it."""
    return [(m, n) for m in case.model.base.modules() for n in getattr(m, "parametrizations", ())]


def read_parameters(case):
    return torch.cat([getattr(module, name).detach().flatten() for module, name in list_moved(case)])


def test_each_number_moves_its_entries_by_plus_or_minus_itself(tiny):
    case = Case(f"subspace(dimension=7, of={INNER})", tiny)
    case.sequential.load(case.first)
    start = read_parameters(case)
    [name] = [n for n in case.layout.names if not n.startswith("head.")]
    assert not case.first[name].any(), "it starts at the method's own start"
    z = torch.arange(1.0, 8.0).double()
    case.sequential.load({name: z})
    moved = read_parameters(case) - start
    columns = [(moved.abs() - value).abs() < 1e-6 for value in z]
    counts = torch.stack([column.sum() for column in columns])
    assert int(counts.sum()) == len(moved), "every entry follows one number"
    assert int(counts.max() - counts.min()) <= 1, "all numbers move equally many"
    assert all(0.2 < float((moved[column] > 0).double().mean()) < 0.8 for column in columns), "signs are random"
    again = Case(f"subspace(dimension=7, of={INNER})", tiny)
    again.sequential.load({name: z})
    assert torch.equal(read_parameters(again), read_parameters(case)), "drawn again from the seed"
    other = Case(f"subspace(dimension=7, of={INNER}, draw=1)", tiny)
    other.sequential.load({name: z})
    assert not torch.equal(read_parameters(other), read_parameters(case))


def test_in_as_many_dimensions_as_parameters_sgd_trains_the_method_itself(tiny):
    plain = Case(INNER, tiny)
    numbers = sum(t.numel for t in plain.layout.tensors if t.role != "head")
    case = Case(f"subspace(dimension={numbers}, of={INNER})", tiny)
    assert sorted(draw_entries(numbers, numbers, 0).remainder(numbers).tolist()) == list(range(numbers))
    starts = (
        {n: t.double() for n, t in plain.method.start(plain.model, 0).items()},
        case.first,
    )
    results = [
        next(iter(c.sequential.train(c.jobs(start, rate=0.1, optimizer="sgd")[:1])))
        for c, start in zip((plain, case), starts, strict=True)
    ]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-9)
    case.sequential.load(results[1].state)
    expected = torch.cat([t.flatten() for n, t in results[0].state.items() if not n.startswith("head.")])
    torch.testing.assert_close(read_parameters(case).sort().values, expected.sort().values, rtol=0, atol=1e-9)


def test_the_vector_is_in_the_lowest_adapted_block(tiny):
    """So blocks below it are as frozen as without it."""
    [name] = [n for n in Case(f"subspace(dimension=7, of={INNER})", tiny).layout.names if not n.startswith("head.")]
    blocks = {".".join(t.module.split(".")[:3]) for t in Case(INNER, tiny).layout.tensors if t.role != "head"}
    assert [f"{block}.subspace" for block in blocks] == [name]
    assert "subspace" in Case("subspace(dimension=7, of=full)", tiny).layout.names


def test_what_has_no_subspace_is_refused(tiny):
    with refuses("FP1632", "vera"):
        PEFT_METHODS.build("subspace(of=vera)")
    with refuses("FP4186", "dimension=1000000"):
        Case(f"subspace(dimension=1000000, of={INNER})", tiny)

"""Quantum-PEFT: counts of the paper's formulas, orthogonality, and means that are exact where that is said."""

from __future__ import annotations

import math

import pytest
import torch

from fedpeft.communication.codec import parse_codec
from fedpeft.conformance.peft_cases import Case
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft.methods.quantum_peft import Pauli, Taylor
from tests.refusals import refuses
from tests.unit.peft.test_prefix_tuning_plus import of_size


@pytest.mark.parametrize("qubits", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_angles_are_as_many_as_the_formula_says(qubits, depth):
    assert Pauli(2**qubits, 1, depth).numbers == (2 * depth + 1) * qubits - 2 * depth


def test_minilm_has_54_numbers_a_matrix():
    """2 ((2 L + 1) log2 N - 2 L) + K with N = 512, and 2 N K - K^2 with N = 384; 648 in all with queries and values."""
    assert Pauli(384, 4, 1).numbers * 2 + 4 == 2 * (3 * 9 - 2) + 4 == 54
    assert Taylor(384, 4, 8).numbers * 2 + 4 == 2 * 384 * 4 - 4**2 == 3056
    mini, targets = (384, 6, 12), "layers=0, targets=('query', 'value')"
    assert of_size(f"quantum_peft({targets})", *mini) == 12 * 54 == 648
    assert of_size(f"quantum_peft({targets}, parameterization='taylor')", *mini) == 12 * 3056
    assert of_size(f"quantum_peft({targets}, train=diagonal)", *mini) == 12 * 4


def test_an_update_of_648_numbers_takes_less_than_3_kb():
    """Queries and values of MiniLM's six blocks in fp32, the head left at its start, which does not travel then."""
    sizes = {"u": Pauli(384, 4, 1).numbers, "v": Pauli(384, 4, 1).numbers, "lambda": 4}
    update = {
        f"encoder.layer.{block}.attention.self.{layer}.quantum_{name}": torch.randn(size)
        for block in range(6)
        for layer in ("query", "value")
        for name, size in sizes.items()
    }
    assert sum(t.numel() for t in update.values()) == 648
    assert 4 * 648 <= len(parse_codec("fp32").encode(update)) < 3000


def gate(matrix, qubit, qubits):
    """Return a gate on adjacent qubits from `qubit` on, as a matrix over all states."""
    width = int(math.log2(len(matrix)))
    left, right = (torch.eye(2**n, dtype=torch.float64) for n in (qubit, qubits - qubit - width))
    return torch.kron(torch.kron(left, matrix), right)


def test_the_circuit_is_the_product_of_its_gates():
    """Four qubits, two layers, 16 angles, as dense matrices: RY on all, then CZ and RY on even and on odd pairs."""
    columns = Pauli(16, 16, 2)
    angles = torch.randn(columns.numbers, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert columns.numbers == 16
    left = list(angles)

    def turn(qubit):
        half = left.pop(0) / 2
        return gate(
            torch.stack([torch.stack([half.cos(), -half.sin()]), torch.stack([half.sin(), half.cos()])]), qubit, 4
        )

    cz = torch.diag(torch.tensor([1.0, 1, 1, -1], dtype=torch.float64))
    expected = torch.eye(16, dtype=torch.float64)
    for qubit in range(4):
        expected = turn(qubit) @ expected
    for _ in range(2):
        for pairs in ([0, 2], [1]):
            for first in pairs:
                expected = gate(cz, first, 4) @ expected
            for qubit in [q for first in pairs for q in (first, first + 1)]:
                expected = turn(qubit) @ expected
    assert not left
    assert torch.allclose(columns(angles), expected, atol=1e-14)
    assert torch.allclose(expected.T @ expected, torch.eye(16, dtype=torch.float64), atol=1e-14)
    assert torch.equal(Pauli(16, 3, 2)(angles), columns(angles)[:, :3])
    assert torch.equal(Pauli(11, 3, 2)(angles), columns(angles)[:11, :3])


def test_the_series_is_the_exponential_of_a_skew_matrix():
    columns = Taylor(12, 3, 14)
    entries = 0.3 * torch.randn(2, columns.numbers, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = columns(entries)
    for numbers, frame in zip(entries, found, strict=True):
        rows, cols = torch.tril_indices(12, 3, -1)
        skew = torch.zeros(12, 12, dtype=torch.float64)
        skew[rows, cols] = numbers
        skew = skew - skew.T
        assert torch.allclose(frame, torch.linalg.matrix_exp(skew)[:, :3], atol=1e-8)
        assert torch.allclose(frame.T @ frame, torch.eye(3, dtype=torch.float64), atol=1e-8)


def test_the_mean_of_lambda_is_exact_and_that_of_angles_is_measured(tiny):
    case = Case("quantum_peft(rank=3, train=diagonal)", tiny)
    assert case.method.weight_changes(case.model) is None
    states = [
        {n: t + i * 0.1 * (1 + torch.arange(t.numel()).view(t.shape)) for n, t in case.start.items()} for i in range(3)
    ]
    mean = {n: sum(s[n] for s in states) / 3 for n in states[0]}
    products = [{m: p.to_dense() for m, p in case.method.changes(case.model, s).items()} for s in [*states, mean]]
    for module, product in products[3].items():
        assert torch.allclose(product, sum(p[module] for p in products[:3]) / 3, atol=1e-12)
        assert float(product.norm()) > 0.1
    assert PEFT_METHODS.build("quantum_peft").weight_changes(Case("quantum_peft(rank=3)", tiny).model) is not None


def test_the_first_angles_are_the_model_s_own(tiny):
    one, other = (Case(f"quantum_peft(rank=3, angle_seed={seed})", tiny).first for seed in (0, 1))
    assert not any(torch.equal(one[n], other[n]) for n in one if n.endswith(("quantum_u", "quantum_v")))
    assert not any(one[n].any() for n in one if n.endswith("lambda"))


def test_more_columns_than_a_layer_has_is_said(tiny):
    with refuses("FP4068", "49", "quantum_peft", "48"):
        Case("quantum_peft(rank=49)", tiny)

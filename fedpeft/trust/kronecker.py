"""Laplace-LoRA (Yang et al., ICLR 2024, arXiv 2308.13111) from Kronecker factors that are sums over rows.

For each LoRA matrix W (out, in), with inputs a and gradients g of log p(c) at its output, c weighted by the model's own
p(c), the Gauss-Newton matrix of all rows is taken to be

    H = (1 / M) (sum a a^T) kron (sum g g^T)        M tokens that are added up, each as a row (KFAC-expand,
                                                    Eschenhagen et al., NeurIPS 2023, arXiv 2311.00636)

which is exact for one row of one token, and an approximation else. Both sums are over rows, so those of clients add up.
With eigenvalues l_i of (sum a a^T) / M and m_j of sum g g^T, H + I / s2 has the eigenvalues 1 / s2 + l_i m_j, where s2
is the prior's variance; directions beyond the `rank` largest l_i keep the prior. So the covariance of two logits with
gradients G, G' (out, in) of the matrix is, with T = U_g^T G U_a,

    s2 <G, G'> - sum_ij T_ij T'_ij (s2 - 1 / (1 / s2 + l_i m_j))

and the evidence of s2 is  LL - norm(W)^2 / (2 s2) - 1/2 sum_ij log(1 + s2 l_i m_j)  over all matrices. (The
paper's code adds the norm without its square, the half of the determinant twice, and the likelihood with the other
sign than both.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 10
"""Directions of the large factor that are kept, as in the paper."""

LEAST, MOST = 1e-6, 1e4
"""Between which the prior's variance is looked for."""


@dataclass(frozen=True)
class Curvature:
    """Of one LoRA matrix: U_a (in, k), l (k,), U_g (out, r), m (r,)."""

    inputs: Tensor
    input_values: Tensor
    outputs: Tensor
    output_values: Tensor

    @classmethod
    def from_sums(cls, inputs: Tensor, outputs: Tensor, tokens: float, rank: int = RANK) -> Curvature:
        """From sum a a^T (in, in), sum g g^T (out, out) and how many tokens they are over; of the larger factor `rank`
        directions are kept."""
        pairs = []
        for matrix in (inputs / tokens, outputs):
            values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
            large = len(matrix) == max(len(inputs), len(outputs))
            kept = min(rank, len(matrix)) if large else len(matrix)
            pairs.append((vectors.flip(1)[:, :kept], values.flip(0)[:kept].clamp_min(0)))
        (inputs, input_values), (outputs, output_values) = pairs
        return cls(inputs, input_values, outputs, output_values)

    @property
    def products(self) -> Tensor:
        """The eigenvalues l_i m_j of H that are kept, (r, k)."""
        return self.output_values[:, None] * self.input_values

    def compute_covariance(self, gradients: Tensor, variance: float) -> Tensor:
        """Of logits whose gradients are (logits, out, in), under a prior of this variance: (logits, logits)."""
        flat = gradients.flatten(1)
        turned = self.outputs.T @ gradients @ self.inputs
        known = variance - 1 / (1 / variance + self.products)
        return variance * flat @ flat.T - ((turned * known).flatten(1) @ turned.flatten(1).T)

    def log_determinant(self, variance: float) -> float:
        """Of I + s2 H."""
        return float(torch.log1p(variance * self.products).sum())


def compute_evidence(
    curvatures: Mapping[str, Curvature], squared_norm: float, log_likelihood: float, variance: float
) -> float:
    """The logarithm of the marginal likelihood of all rows, but for a constant."""
    determinants = sum(curvature.log_determinant(variance) for curvature in curvatures.values())
    return log_likelihood - squared_norm / (2 * variance) - determinants / 2


def find_best_variance(
    curvatures: Mapping[str, Curvature], weights: Mapping[str, Tensor], log_likelihood: float
) -> float:
    """s2 with the largest evidence: `parameters` of the prior share it. `weights`: of the LoRA matrices.

    The prior's own normaliser, -n/2 log s2, is part of the determinant of I / s2 + H, so nothing else depends on s2.
    """
    from scipy.optimize import minimize_scalar

    squared = sum(float(w.double().square().sum()) for w in weights.values())

    def loss(log_variance: float) -> float:
        return -compute_evidence(curvatures, squared, log_likelihood, math.exp(log_variance))

    found = minimize_scalar(loss, bounds=(math.log(LEAST), math.log(MOST)), method="bounded")
    return float(math.exp(found.x))


def apply_probit(logits: Tensor, covariance: Tensor) -> Tensor:
    """Probabilities under uncertain logits, (classes,): softmax(mu / sqrt(1 + pi / 8 var)) (MacKay, 1992)."""
    return (logits / torch.sqrt(1 + math.pi / 8 * covariance.diagonal())).softmax(-1)


def compute_covariance(
    curvatures: Mapping[str, Curvature], gradients: Mapping[str, Tensor], variance: float, classes: int
) -> Tensor:
    """Of all logits, (classes, classes): matrices are independent of each other."""
    total = torch.zeros(classes, classes, dtype=torch.float64)
    for name, curvature in curvatures.items():
        total += curvature.compute_covariance(gradients[name].double(), variance)
    return total


def name_sums(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[str, str]]:
    """What the two sums of each LoRA matrix are called in an answer."""
    return {name: (f"{name}/inputs", f"{name}/outputs") for name in shapes}

"""Laplace-LoRA (Yang et al., ICLR 2024, arXiv 2308.13111) from Kronecker factors that are sums over examples.

A LoRA matrix W (out, in) has inputs a, and gradients g of log p(c) at its output, with c weighted by the model's own
p(c). The Gauss-Newton matrix of all examples is approximated by

    H = (1 / M) (sum a a^T) kron (sum g g^T)        M tokens that are added up, each as a row (KFAC-expand,
                                                    Eschenhagen et al., NeurIPS 2023, arXiv 2311.00636)

It is exact for one example of one token. Both sums are over examples, so those of clients add up. (sum a a^T) / M has
eigenvalues l_i, and sum g g^T has m_j. So H + I / s2 has the eigenvalues 1 / s2 + l_i m_j, where s2 is the prior's
variance. Directions beyond the `rank` largest l_i keep the prior. The covariance of two logits with gradients G, G'
(out, in) of the matrix is, with T = U_g^T G U_a,

    s2 <G, G'> - sum_ij T_ij T'_ij (s2 - 1 / (1 / s2 + l_i m_j))

and the evidence of s2 is  LL - norm(W)^2 / (2 s2) - 1/2 sum_ij log(1 + s2 l_i m_j)  over all matrices. (The paper's
code adds the norm without its square, the half of the determinant twice, and the likelihood with the other sign than
both.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 10
"""Number of directions of the large factor that are kept, as in the paper."""

LEAST, MOST = 1e-6, 1e4
"""Bounds of the search for the prior's variance."""


@dataclass(frozen=True)
class Curvature:
    """The curvature of one LoRA matrix: U_a (in, k), l (k,), U_g (out, r), m (r,)."""

    inputs: Tensor
    input_values: Tensor
    outputs: Tensor
    output_values: Tensor

    @classmethod
    def from_sums(cls, inputs: Tensor, outputs: Tensor, tokens: float, rank: int = RANK) -> Curvature:
        """Create the curvature from sums over tokens.

        Args:
            inputs: sum a a^T (in, in).
            outputs: sum g g^T (out, out).
            tokens: number of tokens in the sums.
            rank: number of directions of the larger factor that are kept.
        """
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
        """Eigenvalues l_i m_j of H that are kept, (r, k)."""
        return self.output_values[:, None] * self.input_values

    def compute_covariance(self, gradients: Tensor, variance: float) -> Tensor:
        """Compute the covariance (logits, logits) of logits under a prior's `variance`.

        Args:
            gradients: gradients of the logits, (logits, out, in).
            variance: s2, above 0.
        """
        flat = gradients.flatten(1)
        turned = self.outputs.T @ gradients @ self.inputs
        known = variance - 1 / (1 / variance + self.products)
        return variance * flat @ flat.T - ((turned * known).flatten(1) @ turned.flatten(1).T)

    def compute_log_determinant(self, variance: float) -> float:
        """Compute the logarithm of the determinant of I + s2 H."""
        return float(torch.log1p(variance * self.products).sum())


def compute_evidence(
    curvatures: Mapping[str, Curvature], squared_norm: float, log_likelihood: float, variance: float
) -> float:
    """Compute the logarithm of the marginal likelihood of all examples, up to a constant."""
    determinants = sum(curvature.compute_log_determinant(variance) for curvature in curvatures.values())
    return log_likelihood - squared_norm / (2 * variance) - determinants / 2


def find_best_variance(
    curvatures: Mapping[str, Curvature], weights: Mapping[str, Tensor], log_likelihood: float
) -> float:
    """Find s2 with the largest evidence; all LoRA matrices, `weights`, share it.

    The prior's own normalizer, -n/2 log s2, is part of the determinant of I / s2 + H, so nothing else depends on s2.
    """
    from scipy.optimize import minimize_scalar

    squared = sum(float(w.double().square().sum()) for w in weights.values())

    def loss(log_variance: float) -> float:
        return -compute_evidence(curvatures, squared, log_likelihood, math.exp(log_variance))

    best = minimize_scalar(loss, bounds=(math.log(LEAST), math.log(MOST)), method="bounded")
    return float(math.exp(best.x))


def apply_probit(logits: Tensor, covariance: Tensor) -> Tensor:
    """Compute probabilities (classes,) of uncertain logits: softmax(mu / sqrt(1 + pi / 8 var)) (MacKay, 1992)."""
    return (logits / torch.sqrt(1 + math.pi / 8 * covariance.diagonal())).softmax(-1)


def compute_covariance(
    curvatures: Mapping[str, Curvature], gradients: Mapping[str, Tensor], variance: float, classes: int
) -> Tensor:
    """Compute the covariance of all logits, (classes, classes); the LoRA matrices are independent of each other."""
    total = torch.zeros(classes, classes, dtype=torch.float64)
    for name, curvature in curvatures.items():
        total += curvature.compute_covariance(gradients[name].double(), variance)
    return total


def name_sums(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[str, str]]:
    """Return the names of both sums of each LoRA matrix in an answer."""
    return {name: (f"{name}/inputs", f"{name}/outputs") for name in shapes}

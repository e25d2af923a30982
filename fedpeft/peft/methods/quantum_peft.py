"""Quantum-PEFT: changes of weights whose singular vectors are columns of an orthogonal matrix with few parameters.

    y = W0 x + U diag(lambda) V^T x,   U (out, K), V (in, K): the first K columns of orthogonal matrices, lambda (K,)

    pauli    U = a circuit of RY gates on q = ceil(log2 N) qubits: one RY(t) = [[cos t/2, -sin t/2], [sin t/2, cos t/2]]
             on each, then `depth` times CZ on the even pairs of neighbors, RY on the qubits that these have touched,
             and both on the odd pairs. (2 depth + 1) q - 2 depth angles. If N is not a power of two, the first N rows
             are taken, whose columns are then only nearly orthonormal.
    taylor   U = sum_{p <= order} X^p / p! of a skew-symmetric X with K free columns, N K - K (K + 1) / 2 numbers (the
             paper's Lie parameterization); orthogonal as far as the series has converged.

Both sides and lambda have 2 ((2 depth + 1) q - 2 depth) + K numbers if W0 is square (pauli), or 2 N K - K^2 (taylor).
In a layer of MiniLM (N = 384, K = 4) these are 54 and 3,056; lora has 6,144 at rank 8. lambda starts at 0; U and V
start from `angle_seed` (Koike-Akino et al., arXiv 2503.05431).

The change is linear in lambda: with train=diagonal, U and V stay as drawn and the mean of the clients' lambda is exact.
With train=all the angles travel, too. Their plain mean is approximate, right only near a common start, and its error is
reported every round. The result is saved as a standard LoRA adapter with the factors U diag(lambda) and V^T.

Use it if only hundreds of numbers may travel and steps may take longer than LoRA's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.machine import seeds
from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.layers import declare_layers, find_target_layers, get_innermost, replace
from fedpeft.models.task import FederatedModel
from fedpeft.parts import setting
from fedpeft.peft.abilities import WeightChanges
from fedpeft.peft.adapter import State
from fedpeft.peft.low_rank import LowRank
from fedpeft.peft.method import PeftMethod
from fedpeft.peft.stacked_layers import StackedLayer

SIDES = ("u", "v")


@dataclass(frozen=True)
class Pauli:
    """The first `columns` columns and `size` rows of a circuit's matrix."""

    size: int
    columns: int
    depth: int

    @property
    def qubits(self) -> int:
        """Number of qubits: the smallest, at least one, with 2^qubits states for `size` rows."""
        return max(1, (self.size - 1).bit_length())

    @cached_property
    def steps(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Pairs of neighbors that CZ acts on before their qubits are rotated, in order."""
        pairs = [tuple((i, i + 1) for i in range(first, self.qubits - 1, 2)) for first in (0, 1)]
        return tuple(step for step in pairs * self.depth if step)

    @property
    def numbers(self) -> int:
        """Number of angles: (2 depth + 1) q - 2 depth."""
        return self.qubits + sum(2 * len(step) for step in self.steps)

    @property
    def bound(self) -> float:
        """Bound pi of the first angles, which are uniform in +-pi."""
        return torch.pi

    def __call__(self, angles: Tensor) -> Tensor:
        """Map angles (..., numbers) to matrices (..., size, columns)."""
        states, before = 2**self.qubits, angles.shape[:-1]
        matrix = torch.eye(states, self.columns, dtype=angles.dtype, device=angles.device).expand(*before, -1, -1)
        matrix = self._rotate(matrix, angles, range(self.qubits), 0)
        used = self.qubits
        state, last = torch.arange(states, device=angles.device), self.qubits - 1
        for step in self.steps:
            for i, j in step:  # CZ changes the sign of states in which both qubits are 1
                both = (state >> (last - i)) & (state >> (last - j)) & 1
                matrix = matrix * (1 - 2 * both).to(angles.dtype)[:, None]
            qubits = [qubit for pair in step for qubit in pair]
            matrix = self._rotate(matrix, angles, qubits, used)
            used += len(qubits)
        return matrix[..., : self.size, :]

    def _rotate(self, matrix: Tensor, angles: Tensor, qubits: Sequence[int], first: int) -> Tensor:
        """Apply RY to `qubits`, with the angles from index `first` on."""
        shape = matrix.shape
        for number, qubit in enumerate(qubits):
            half = angles[..., first + number, None, None, None] / 2
            cosine, sine = half.cos(), half.sin()
            one, other = matrix.reshape(*shape[:-2], 2**qubit, 2, -1, self.columns).unbind(-3)
            matrix = torch.stack([cosine * one - sine * other, sine * one + cosine * other], dim=-3)
        return matrix.reshape(shape)


@dataclass(frozen=True)
class Taylor:
    """The first `columns` columns of a matrix exponential's series."""

    size: int
    columns: int
    order: int

    @property
    def numbers(self) -> int:
        """Number of entries of X below its diagonal in its first columns: N K - K (K + 1) / 2."""
        return self.size * self.columns - self.columns * (self.columns + 1) // 2

    @property
    def bound(self) -> float:
        """Bound 1 / sqrt(N) of the first entries: X has a spectral norm below 1, and the series converges fast."""
        return float(self.size**-0.5)

    def __call__(self, entries: Tensor) -> Tensor:
        """Map entries (..., numbers) to matrices (..., size, columns)."""
        rows, columns = torch.tril_indices(self.size, self.columns, -1, device=entries.device)
        where = torch.full((self.size, self.columns), self.numbers, device=entries.device)
        where[rows, columns] = torch.arange(self.numbers, device=entries.device)
        below = functional.pad(entries, (0, 1))[..., where]
        term = torch.eye(self.size, self.columns, dtype=entries.dtype, device=entries.device)
        total = term
        for power in range(1, self.order + 1):
            top = functional.pad(below.mT @ term, (0, 0, 0, self.size - self.columns))
            term = (below @ term[..., : self.columns, :] - top) / power
            total = total + term
        return total


Columns = Pauli | Taylor


class QuantumLayer(StackedLayer):
    """A frozen layer with U, V and lambda of K clients, (K, ...), or of one client.

    Trained angles are parameters, and U and V are computed from them in each pass. Otherwise U and V are fixed.
    """

    def __init__(
        self,
        layer: Any,
        sides: Mapping[str, tuple[Columns, Tensor]],
        dtype: torch.dtype,
        trained: bool,
        clients: int = 0,
    ) -> None:
        """Create lambda and both sides beside `layer`.

        Args:
            layer: the frozen layer.
            sides: the parameterization and first angles of U ("u") and V ("v").
            dtype: dtype of the parameters.
            trained: whether the angles are trained.
            clients: number of clients; 0: one client without a leading axis.
        """
        super().__init__(max(clients, 1))
        inner: Any = get_innermost(layer)
        device = inner.weight.device
        self.base_layer = layer
        self.trained = trained
        self.columns = {side: columns for side, (columns, _) in sides.items()}
        for side, (columns, start) in sides.items():
            if trained:
                each = start.expand(clients, -1).clone() if clients else start
                self.register_parameter(f"quantum_{side}", nn.Parameter(each.to(device, dtype)))
            else:
                self.register_buffer(side, columns(start.double()).to(device, dtype), persistent=False)
        rank = self.columns["u"].columns
        shape = (clients, rank) if clients else (rank,)
        self.quantum_lambda = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))

    def get_side(self, name: str) -> Tensor:
        """Return U or V as (size, K), or as (clients, size, K) if each client has its own."""
        if not self.trained:
            return self.get_buffer(name)
        angles: Tensor = getattr(self, f"quantum_{name}")
        return self.columns[name](angles[: self.active] if angles.dim() > 1 else angles)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        y: Tensor = self.base_layer(x)
        left, right = self.get_side("u").to(x.dtype), self.get_side("v").to(x.dtype)
        if self.quantum_lambda.dim() == 1:
            return y + ((x @ right) * self.quantum_lambda.to(x.dtype)) @ left.mT
        seen = (self.split_by_client(x) @ right) * self.select_active(self.quantum_lambda, x)[:, None]
        return y + (seen @ left.mT).view_as(y)


@dataclass(frozen=True)
class QuantumPeft(PeftMethod):
    """Singular values between columns of orthogonal matrices with few parameters."""

    rank: int = setting(4, "K, columns of either side", low=1, high=256)
    parameterization: str = setting("pauli", "parameterization of the orthogonal matrices", choices=("pauli", "taylor"))
    depth: int = setting(1, "depth of the circuit, for pauli", low=0, high=64)
    order: int = setting(8, "order of the series, for taylor", low=1, high=64)
    train: str = setting(
        "all",
        "all: lambda and the angles, with an approximate mean; diagonal: only lambda, with an exact mean",
        choices=("all", "diagonal"),
    )
    angle_seed: int = setting(0, "seed of the first angles; part of the model, not the run's seed", low=0)
    targets: str | tuple[str, ...] = setting("all", "linear layers by the end of their name, or all")
    layers: int | tuple[int, ...] | None = declare_layers()

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    merges: ClassVar[bool] = True

    @property
    def tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Name endings of lambda, and of the angles if they are trained."""
        return ("quantum_lambda",) if self.train == "diagonal" else ("quantum_u", "quantum_v", "quantum_lambda")

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Wrap the target layers."""
        for path in find_target_layers(model.base, self.targets, self.layers):
            layer = model.base.get_submodule(path)
            replace(model.base, path, self._create_layer(path, layer, get_adapter_dtype(dtype)))

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return the frozen layer with the parameters of K clients."""
        weight: Any = get_innermost(layer).weight
        return self._create_layer(path, layer, get_wide_dtype(weight.dtype), clients)

    def _create_layer(self, path: str, layer: Any, dtype: torch.dtype, clients: int = 0) -> QuantumLayer:
        sides: dict[str, tuple[Columns, Tensor]] = {}
        for side, size in zip(SIDES, (layer.out_features, layer.in_features), strict=True):
            if self.rank > size:
                raise ModelError(
                    f"FP4068 rank={self.rank} of {self.name} exceeds the width {size} of {path}; choose a rank "
                    f"of at most {size}"
                )
            columns = self._create_columns(size)
            generator = seeds.create_torch_generator(self.angle_seed, f"quantum {path} {side}")
            drawn = torch.rand(columns.numbers, generator=generator, dtype=torch.float64)
            sides[side] = columns, (2 * drawn - 1).float() * columns.bound
        return QuantumLayer(layer, sides, dtype, self.train == "all", clients)

    def _create_columns(self, size: int) -> Columns:
        if self.parameterization == "pauli":
            return Pauli(size, self.rank, self.depth)
        return Taylor(size, self.rank, self.order)

    def changes(self, model: FederatedModel, state: State) -> dict[str, LowRank]:
        """Return the factors U diag(lambda) and V^T of each layer."""
        modules = [self.role(name)[1] for name in state if name.endswith(".quantum_lambda")]
        return {module: product(state) for module, product in self._create_products(model, modules).items()}

    def weight_changes(self, model: FederatedModel) -> WeightChanges | None:
        """Return a function that computes U diag(lambda) V^T of each layer.

        None if only lambda is trained, because aggregation is then exact.
        """
        if self.train == "diagonal":
            return None
        modules = [t.module for t in self.layout(model).tensors if t.name.endswith(".quantum_lambda")]
        products = self._create_products(model, modules)
        return lambda state, _: {module: product(state).to_dense() for module, product in products.items()}

    def _create_products(self, model: FederatedModel, modules: Sequence[str]) -> dict[str, Callable[[State], LowRank]]:
        """Create a function for each module that computes the change of its weights from a state."""

        def create_product(module: str) -> Callable[[State], LowRank]:
            layer = model.base.get_submodule(module)
            assert isinstance(layer, QuantumLayer)

            def product(state: State) -> LowRank:
                sides = []
                for side in SIDES:
                    angles = state.get(f"{module}.quantum_{side}")
                    fixed = layer.get_side(side).detach() if angles is None else layer.columns[side](angles.double())
                    sides.append(fixed.double())
                return LowRank(sides[0] * state[f"{module}.quantum_lambda"].double(), sides[1].mT)

            return product

        return {module: create_product(module) for module in modules}


part = QuantumPeft

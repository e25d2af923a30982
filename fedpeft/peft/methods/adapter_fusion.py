"""AdapterFusion: finished bottleneck adapters, frozen and combined by attention at each token.

    h = f(x),   z_n = up_n(act(down_n(h))),   s = softmax_n((h W_Q) . (z_n W_K)),   y = h + sum_n s_n z_n W_V

Training has two stages (Pfeiffer et al., arXiv 2005.00247). The setting `runs` names the results of stage one: finished
runs of `bottleneck` for other tasks or other clients on the same base. They are read once and never change. Stage two
trains W_Q and W_K (width, d) and W_V (d, d). With one adapter and W_V = I the output is that adapter's. width=0 is the
paper's square W_Q and W_K, 3 d^2 numbers a layer.

W_V starts as the identity, with 1e-6 off its diagonal, and the penalty 0.01 norm(W_V - I)^2 pulls it back. W_Q and W_K
start with standard deviation 0.02. Both are as in the authors' adapter-transformers.

Deviations. W_Q and W_K have no biases, as in the paper's formula but unlike the authors' code. Rule: the plain mean
from a shared start. It is not exact, since the three matrices multiply each other. With --strategy
"fedper(private_layers=('query', 'key', 'value'))" each client keeps a fusion of its own.

The saved result contains the adapters and no longer needs the runs. A server tells real clients the runs' digests, and
each client names folders of its own that have them (`join --runs`). So no server names a folder of a client.

Use it if finished `bottleneck` runs of other tasks exist.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file
from torch import Tensor, nn

from fedpeft.errors import ConfigError, ModelError
from fedpeft.machine import cache, seeds
from fedpeft.machine.files import check_regular_file, parse_json
from fedpeft.models.dtypes import get_adapter_dtype, get_wide_dtype
from fedpeft.models.layers import replace
from fedpeft.models.task import FederatedModel, get_canonical_name
from fedpeft.parts import setting
from fedpeft.peft.adapter import State, TensorSpec
from fedpeft.peft.method import PeftMethod, PrivacyRoute, Pulls
from fedpeft.peft.methods.bottleneck import PLACES, BottleneckAdapters, Tap, create_tap
from fedpeft.peft.saved_adapter import OWN_METHOD, OWN_TENSORS, has_same_marks, record_marks
from fedpeft.peft.stacked_layers import StackedLayer, StackedWeight

Adapters = dict[str, list[State]]
"""Tensors of each adapter (down.weight, down.bias, up.weight, up.bias), by the module that the adapter follows."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
"""A finished run, by its adapter's files."""

PULL = 0.01
"""Weight of norm(W_V - I)^2 in the loss."""


def compute_identity_pull(value: Tensor) -> Tensor:
    """Compute the gradient of 0.01 norm(W - I)^2 at `value` (..., d, d)."""
    return 2 * PULL * (value - torch.eye(value.shape[-1], dtype=value.dtype, device=value.device))


class FrozenAdapter(nn.Module):
    """A finished bottleneck adapter without the residual connection around it."""

    def __init__(self, tensors: State, act: str, like: Tensor, dtype: torch.dtype) -> None:
        """Hold the adapter's `tensors` on the device of `like`, frozen, with the activation function `act`."""
        super().__init__()
        self.down, self.up = nn.Module(), nn.Module()
        for name, tensor in tensors.items():
            part, _, kind = name.partition(".")
            held = nn.Parameter(tensor.to(like.device, dtype), requires_grad=False)
            self.get_submodule(part).register_parameter(kind, held)
        self.act = getattr(functional, act)

    def forward(self, z: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        down, up = self.down, self.up
        hidden = self.act(functional.linear(z, down.weight, down.bias))  # type: ignore[arg-type]
        return functional.linear(hidden, up.weight, up.bias)  # type: ignore[arg-type]


class Fusion(nn.Module):
    """The last frozen projection of a sublayer, finished adapters behind it, and the attention that combines them."""

    pulls: ClassVar[Pulls] = {"value.weight": compute_identity_pull}

    def __init__(
        self, layer: Any, adapters: Sequence[State], width: int, act: str, tap: Tap | None, dtype: torch.dtype
    ) -> None:
        """Put the frozen `adapters` and new projections behind `layer`; `width` 0 stands for its output's width."""
        super().__init__()
        d = layer.out_features
        self.base_layer, self.tap = layer, tap
        self.adapters = nn.ModuleList(FrozenAdapter(each, act, layer.weight, dtype) for each in adapters)
        options = {"device": layer.weight.device, "dtype": dtype, "bias": False}
        self.query, self.key = (nn.Linear(d, width or d, **options) for _ in range(2))
        self.value = nn.Linear(d, d, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., d); computed in the adapters' precision."""
        y: Tensor = self.base_layer(x)
        h = y.to(self.query.weight.dtype)
        seen = h if self.tap is None else self.tap.take().to(h.dtype)
        z = torch.stack([adapter(seen) for adapter in self.adapters], dim=-2)  # (..., N, d)
        shares = torch.einsum("...w,...nw->...n", self.query(h), self.key(z)).softmax(-1)
        return y + torch.einsum("...n,...nd->...d", shares, self.value(z)).to(y.dtype)


class StackedFusion(StackedLayer):
    """A fusion with W_Q, W_K (K, width, d) and W_V (K, d, d) of K clients; the adapters are shared."""

    pulls: ClassVar[Pulls] = {"value.weight": compute_identity_pull}

    def __init__(
        self,
        layer: Any,
        adapters: Sequence[State],
        width: int,
        act: str,
        tap: Tap | None,
        dtype: torch.dtype,
        clients: int,
    ) -> None:
        """Put the frozen `adapters` and the projections of K `clients` behind `layer`, as `Fusion` does."""
        super().__init__(clients)
        d = adapters[0]["up.weight"].shape[0]
        self.base_layer, self.tap = layer, tap
        self.adapters = nn.ModuleList(FrozenAdapter(each, act, layer.weight, dtype) for each in adapters)
        for name, rows in (("query", width or d), ("key", width or d), ("value", d)):
            self.add_module(name, StackedWeight(clients, (rows, d), dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(K * b, T, in) to (K * b, T, d)."""
        y: Tensor = self.base_layer(x)
        query, key, value = (self.get_submodule(n).weight[: self.active] for n in ("query", "key", "value"))  # type: ignore[index]
        h = self.split_by_client(y.to(query.dtype))
        seen = h if self.tap is None else self.split_by_client(self.tap.take().to(query.dtype))
        z = torch.stack([adapter(seen) for adapter in self.adapters], dim=2)  # (K, rows, N, d)
        scores = torch.einsum("kiw,kinw->kin", h @ query.mT, z @ key.unsqueeze(1).mT)
        mixed = torch.einsum("kin,kind->kid", scores.softmax(-1), z) @ value.mT
        return y + mixed.reshape(y.shape).to(y.dtype)


@dataclass(frozen=True)
class AdapterFusion(PeftMethod):
    """Attention over finished bottleneck adapters."""

    runs: str | tuple[str, ...] = setting("", "folders of finished runs of bottleneck: ('runs/a', 'runs/b')")
    width: int = setting(64, "width of W_Q and W_K; 0: the model's own, as in the paper", low=0, high=16384)
    place: str = setting("pfeiffer", "place of the finished adapters", choices=PLACES)
    activation: str = setting(
        "relu", "activation function of the finished adapters", choices=("relu", "gelu", "silu", "tanh")
    )

    batched: ClassVar[bool] = True
    in_peft: ClassVar[bool] = False
    privacy: ClassVar[PrivacyRoute] = "hooks"
    tensors: ClassVar[tuple[str, ...]] = ("query.weight", "key.weight", "value.weight")
    regularised: ClassVar[bool] = True
    own_machine: ClassVar[str] = "reads finished runs in folders of this machine"

    def __post_init__(self) -> None:
        """Refuse a run that is named twice: a server could make a client hold any number of copies of its adapters.

        Raises:
            ConfigError: names the run.
        """
        if twice := [run for run, times in Counter(self._named).items() if times > 1]:
            raise ConfigError(f"FP1993 adapter_fusion names the run {twice[0]!r:.80} twice; name each run once")

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders of the finished runs.

        Raises:
            ConfigError: none is named.
        """
        folders = tuple(Path(text) for text in self._named if text)
        if not folders:
            raise ConfigError(
                "FP1242 adapter_fusion combines finished adapters: name the folders of runs of bottleneck, such as "
                "adapter_fusion(runs=('runs/a', 'runs/b'))"
            )
        return folders

    @property
    def _named(self) -> tuple[str, ...]:
        return (self.runs,) if isinstance(self.runs, str) else tuple(self.runs)

    def name_by_digests(self) -> Self:
        """Return the method with the digest of each finished run in place of its folder.

        Raises:
            ConfigError: none is named, or a folder contains no finished run.
        """
        return dataclasses.replace(self, runs=tuple(map(compute_run_digest, self.folders)))

    def names_digests(self) -> bool:
        """Return whether `runs` contains digests instead of folders."""
        return all(map(DIGEST.fullmatch, self._named))

    def find_runs(self, folders: Sequence[Path]) -> Self:
        """Return the method with those of the `folders` that have the digests in `runs`.

        Raises:
            ConfigError: no folder has one of the digests, or a folder contains no finished run.
        """
        known = {compute_run_digest(folder): str(folder) for folder in folders}
        for digest in self._named:
            if digest not in known:
                given = ", ".join(map(str, folders)) or "nothing"
                raise ConfigError(
                    f"FP1838 the federation combines {len(self._named)} finished runs, one with the digest "
                    f"{digest[:19]}, which none of --runs has (given: {given}); ask whoever runs the server for the "
                    "folders, and join with --runs FOLDER,FOLDER"
                )
        return dataclasses.replace(self, runs=tuple(known[digest] for digest in self._named))

    def load_adapters(self, base: nn.Module) -> Adapters:
        """Load the adapters of all runs for `base`.

        Raises:
            ConfigError: a folder contains no finished run of bottleneck, or its adapters do not fit this run or each
                other.
        """
        adapters: Adapters = {}
        for folder in self.folders:
            by_module = self._load_run(folder, base)
            if adapters and by_module.keys() != adapters.keys():
                raise ConfigError(
                    f"FP1243 {folder} has adapters after other layers than {self.folders[0]}; name runs with "
                    "equal layers="
                )
            for module, tensors in by_module.items():
                adapters.setdefault(module, []).append(tensors)
        return adapters

    def _load_run(self, folder: Path, base: nn.Module) -> dict[str, State]:
        """Return the tensors of one run's adapters, by module."""
        from fedpeft.parts.families import PEFT_METHODS

        files = folder / "adapter"
        try:
            described = parse_json((files / OWN_METHOD).read_bytes())
            tensors = load_file(check_regular_file(files / OWN_TENSORS))
            method = PEFT_METHODS.build(described["method"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"FP1244 {folder} contains no finished run of bottleneck; name folders of finished runs of bottleneck"
            ) from error
        if not isinstance(method, BottleneckAdapters):
            raise ConfigError(f"FP1245 {folder} is a run of {method.name}; adapter_fusion combines runs of bottleneck")
        for name in ("place", "activation"):
            if (theirs := getattr(method, name)) != getattr(self, name):
                raise ConfigError(
                    f"FP1246 the adapters in {folder} have {name}={theirs}; give adapter_fusion({name}={theirs!r})"
                )
        by_module = group_by_module(tensors, "down.weight", "down.bias", "up.weight", "up.bias")
        if not has_same_marks(described.get("base", {}), record_marks(base, by_module)):
            raise ConfigError(
                f"FP1247 the adapters in {folder} were trained on another base model than this run's; use the "
                "same --model"
            )
        return by_module

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Attach the finished adapters and the attention that combines them."""
        self._put(model, self.load_adapters(model.base), dtype)

    def _put(self, model: FederatedModel, adapters: Adapters, dtype: str) -> None:
        for path, each in adapters.items():
            layer, tap = _wrap_layer(model.base, path, each), create_tap(model.base, path, self.place)
            replace(model.base, path, Fusion(layer, each, self.width, self.activation, tap, get_adapter_dtype(dtype)))

    def frozen(self, model: FederatedModel) -> State:
        """Return the finished adapters."""
        return {get_canonical_name(name): p for name, p in model.named_parameters() if ".adapters." in name}

    def attach_saved(self, model: FederatedModel, tensors: State) -> None:
        """Attach the saved adapters; the folders of the runs may be gone."""
        adapters: Adapters = {}
        for module, adapter in group_by_module({n: t for n, t in tensors.items() if ".adapters." in n}).items():
            adapters.setdefault(module.partition(".adapters.")[0], []).append(adapter)
        self._put(model, adapters, "fp32")

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return W_V as the identity with 1e-6 off its diagonal, W_Q and W_K normal with standard deviation 0.02."""
        state = super().start(model, seed)
        for name in state:
            if name.endswith("value.weight"):
                state[name] = torch.full_like(state[name], 1e-6).fill_diagonal_(1.0)
            elif name.endswith(self.tensors):
                generator = seeds.create_torch_generator(seed, f"start {name}", 0)
                state[name] = 0.02 * torch.randn(state[name].shape, generator=generator)
        return state

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Put K clients' fusions behind each sublayer."""
        dtype = get_wide_dtype(next(model.base.parameters()).dtype)
        for path, each in self.load_adapters(model.base).items():
            layer, tap = model.base.get_submodule(path), create_tap(model.base, path, self.place)
            replace(model.base, path, StackedFusion(layer, each, self.width, self.activation, tap, dtype, clients))


def compute_run_digest(folder: Path) -> str:
    """Return the digest of a finished run: of the files that describe and contain its adapter.

    Raises:
        ConfigError: the folder contains no finished run with such files.
    """
    files = folder / "adapter"
    try:
        for name in (OWN_METHOD, OWN_TENSORS):
            check_regular_file(files / name)
        return f"sha256:{cache.hash_files(files, (OWN_METHOD, OWN_TENSORS))}"
    except OSError as error:
        raise ConfigError(
            f"FP1244 {folder} contains no finished run of bottleneck; name folders of finished runs of bottleneck"
        ) from error


def group_by_module(tensors: State, *endings: str) -> dict[str, State]:
    """Group tensors by the module of their adapter; keys are names within the adapter, such as `down.weight`.

    Raises:
        ConfigError: `endings` are given, and a tensor has another one.
    """
    modules: dict[str, State] = {}
    for name, tensor in tensors.items():
        module, part, kind = name.rsplit(".", 2)
        if endings and f"{part}.{kind}" not in endings:
            raise ConfigError(f"FP1248 {name} is not a tensor of a bottleneck adapter; legal: {', '.join(endings)}")
        modules.setdefault(module, {})[f"{part}.{kind}"] = tensor
    return modules


def _wrap_layer(base: nn.Module, path: str, adapters: Sequence[State]) -> Any:
    """Return the layer at `path` after checking that its width is that of the `adapters` behind it.

    Raises:
        ModelError: the layer does not exist, or its width differs.
    """
    try:
        layer: Any = base.get_submodule(path)
    except AttributeError:
        raise ModelError(
            f"FP4058 {type(base).__name__} has no layer {path}, which the finished adapters follow; use the "
            "base of the finished runs"
        ) from None
    widths = {each["up.weight"].shape[0] for each in adapters}
    if widths != {layer.out_features}:
        raise ModelError(
            f"FP4059 the finished adapters after {path} have the widths {sorted(widths)}, and the layer's width "
            f"is {layer.out_features}; use the base of the finished runs"
        )
    return layer


part = AdapterFusion

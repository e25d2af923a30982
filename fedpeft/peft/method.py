"""The interface of a PEFT method: its trainable parameters, their place and start, and its legal aggregation rules.

The reference is the `peft` library's own model, which `attach` builds and the sequential executor trains. A method that
the batched executor supports also defines `stack`: the same layer with the parameters of K clients side by side.

Every method declares what it supports. Other combinations are refused by name before a run begins. `PeftMethod`
contains what all methods have. What a few methods do in addition is in `fedpeft.peft.abilities`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedpeft.errors import ModelError
from fedpeft.machine import seeds
from fedpeft.models.dtypes import get_adapter_dtype
from fedpeft.models.layers import replace
from fedpeft.models.quantized_base import Precision
from fedpeft.models.task import FederatedModel, find_trainable
from fedpeft.parts import name_of
from fedpeft.peft.abilities import SavedAsOther
from fedpeft.peft.adapter import AdapterShape, JointMeaning, Layout, Role, State, TensorSpec
from fedpeft.peft.stacked_layers import StackedLayer

PrivacyRoute = Literal["hooks", "vmap", "refused"]
"""How gradients per example are computed for DP-SGD.

- hooks: by Opacus' hooks on layers. They are fast, but each trained parameter must be used by calling its own module.
- vmap: by `torch.func.vmap(grad)` of the whole model, correct for every model that it can trace.
- refused: not at all.
"""

Pulls = dict[str, Callable[[Tensor], Tensor]]
"""Type of a layer's `pulls`: by the name of a tensor, a function that returns the gradient of its penalty.

The gradient has the tensor's shape, or the clients come first. Executors add it to the gradient of the loss in each
step.
"""


class PeftMethod:
    """One PEFT method. Subclasses are frozen dataclasses whose fields are the user's settings."""

    batched: ClassVar[bool] = False
    """Whether the method has `stack`."""

    privacy: ClassVar[PrivacyRoute] = "vmap"
    """The route to gradients per example; "hooks" only if `test_per_example.py` has verified the method."""

    tensors: ClassVar[tuple[str, ...]] = ()
    """Name endings of the tensors that the method trains, without the head."""

    roles: ClassVar[Mapping[str, Role]] = {}
    """Roles of these tensors by name ending; of the others: plain."""

    needs_one_of: ClassVar[tuple[str, ...]] = ("config", "attach")
    """Methods of which each PEFT method defines at least one."""

    joint_meaning: ClassVar[JointMeaning | Literal[""]] = ""
    """What tensors mean together, which a strategy must preserve (`Strategy.preserves`); empty: each means itself."""

    mixed_sizes: ClassVar[bool] = False
    """Whether clients may hold different sizes (`form`)."""

    residual: ClassVar[bool] = False
    """Whether a strategy may put the part of an aggregate that the adapter can't hold into the base."""

    merges: ClassVar[bool] = False
    """Whether the finished adapter can be merged into the base's weights exactly."""

    composes: ClassVar[bool] = False
    """Whether it can be one of several methods in one model: `lora(rank=8) + bitfit`."""

    called_elsewhere: ClassVar[dict[str, str]] = {"r": "rank", "lora_alpha": "alpha", "target_modules": "targets"}
    """The `peft` library's names of settings, and their names here."""

    in_peft: ClassVar[bool] = True
    """Whether the `peft` library implements and saves the method."""

    whole_model: ClassVar[bool] = False
    """Whether the result is saved as a whole model."""

    few_bits: ClassVar[bool] = True
    """Whether clients may hold the base's linear layers in nf4 or int8 with this method."""

    batched_in_few_bits: ClassVar[bool] = False
    """Whether its stacked layers also work with a base in nf4 or int8."""

    regularised: ClassVar[bool] = False
    """Whether its layers add the gradient of a penalty in each local step (`pulls`)."""

    reads: ClassVar[str] = ""
    """What the head reads (`read`), as a part of cache keys: `ALL_BLOCKS`, or a text; empty: the last hidden states."""

    suited_head: ClassVar[str] = ""
    """The default head start in runs without privacy; empty: chosen by the data."""

    of_pictures: ClassVar[bool] = False
    """Whether it works only for base models of images."""

    own_machine: ClassVar[str] = ""
    """Why only a simulation can run the method; empty: real clients can run it, too."""

    @property
    def base_precision(self) -> Precision:
        """Precision of the base's linear layers; empty: the run's dtype."""
        return ""

    def base_as_read(self, precision: str = "") -> dict[str, str]:
        """Return the cache-key fields that distinguish this method's view of the base from the plain base.

        Args:
            precision: precision of the base's linear layers; empty: the method's own.
        """
        fields = {"precision": precision or self.base_precision, "read": self.reads}
        return {name: value for name, value in fields.items() if value}

    def read(self, base: nn.Module) -> None:
        """Change `base` in place so that it returns what the head reads; by default it stays as it is."""

    @property
    def name(self) -> str:
        """Name of the method: the name of its file or plugin."""
        return name_of(type(self))

    @property
    def form(self) -> AdapterShape | None:
        """LoRA rank and alpha, or a prompt's length; None for methods of one size."""
        return None

    @property
    def extra_tokens(self) -> int:
        """Number of positions that the method adds before each example."""
        return 0

    def get_settings_for(self, form: AdapterShape) -> dict[str, Any]:
        """Return the settings that give a method with `mixed_sizes` the shape `form`; by default rank and alpha."""
        return {"rank": form.rank, "alpha": form.alpha}

    def config(self, base: nn.Module) -> Any:
        """Return the `peft.PeftConfig` that describes the adapter on `base`; by default None: it is not a peft adapter.

        Raises:
            ModelError: the model lacks a layer that the settings name.
        """
        return None

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Put the adapter into `model.base`, with trainable parameters of the dtype of `get_adapter_dtype(dtype)`.

        Raises:
            ModelError: the model lacks what the method needs.
        """
        import peft

        layers = {name.rsplit(".", 1)[-1] for name, m in model.base.named_modules() if isinstance(m, nn.Linear)}
        try:
            config = self.config(model.base)
            if not isinstance(config, peft.PeftConfig):
                raise ModelError(
                    f"FP4051 {self.name}: config must return a peft.PeftConfig, and has returned {config!r:.80}; "
                    "define attach if the method is not a peft adapter"
                )
            model.base = peft.get_peft_model(model.base, config)
        except (ValueError, KeyError) as error:
            raise _create_refusal(self.name, type(model.base).__name__, layers, error) from error
        self.settle(model.base)
        for parameter in model.base.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(get_adapter_dtype(dtype))

    def settle(self, base: nn.Module) -> None:
        """Adjust `base` after the `peft` library has put its layers into it; by default, do nothing."""

    def layout(self, model: FederatedModel) -> Layout:
        """Return the layout of the trainable tensors of a model that this method is attached to.

        A vector that is a factor counts as a matrix of rank 1: (1, n) as A, (n, 1) as B.
        """
        specs = []
        for name, parameter in find_trainable(model).items():
            role, module = self.role(name)
            shape = tuple(parameter.shape)
            if len(shape) == 1 and role in ("lora_A", "lora_B"):
                shape = (1, *shape) if role == "lora_A" else (*shape, 1)
            specs.append(TensorSpec(name, shape, role, module))
        return Layout(tuple(specs), self.form)

    def role(self, name: str) -> tuple[Role, str]:
        """Return role and module of the tensor called `name`."""
        if name.startswith("head."):
            return "head", "head"
        for ending in self.tensors:
            if ending and name.endswith("." + ending):
                return self.roles.get(ending, "plain"), name.removesuffix("." + ending)
        return "plain", name.rpartition(".")[0]

    def start(self, model: FederatedModel, seed: int) -> State:
        """Return the initial global state in fp32; by default the attached model's own values."""
        return {name: p.detach().to(torch.float32).clone() for name, p in find_trainable(model).items()}

    def merge_adapter(self, model: FederatedModel) -> nn.Module:
        """Merge the adapter of a finished `model` into the weights and return the plain base; only if `merges`."""
        base: Any = model.base
        plain: nn.Module = base.merge_and_unload()
        return plain

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Put the adapters of `clients` clients into `model.base`, one layer after another."""
        modules: dict[str, dict[str, tuple[int, ...]]] = {}
        for spec in tensors:
            modules.setdefault(spec.module, {})[spec.name.removeprefix(spec.module + ".")] = spec.shape
        for path, shapes in modules.items():
            replace(model.base, path, self.stack(path, model.base.get_submodule(path), shapes, clients))

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """Return `layer` at `path` with the adapters of `clients` clients; `shapes` are by name within the module."""
        raise NotImplementedError


def create_start(method: PeftMethod, model: FederatedModel, seed: int) -> State:
    """Create the initial global state of a `model` that a method, perhaps a plugin's, is attached to.

    Raises:
        ModelError: the start differs from the layout in its tensors, has values that are not finite, or the method
            claims
            support that it does not have.
    """
    state, shapes = method.start(model, seed), method.layout(model).shapes
    for name in sorted(state.keys() | shapes.keys()):
        actual = tuple(state[name].shape) if name in state else "missing"
        if actual != shapes.get(name):
            raise ModelError(
                f"FP4053 {method.name}: start returns {name} as {actual}, and the model trains "
                f"{shapes.get(name, 'no such tensor')}"
            )
        if not bool(state[name].isfinite().all()):
            raise ModelError(f"FP4054 {method.name}: start returns values of {name} that are NaN or infinite")
    is_saved_otherwise = method.whole_model or isinstance(method, SavedAsOther)
    if method.in_peft and not is_saved_otherwise and not hasattr(model.base, "peft_config"):
        raise ModelError(
            f"FP4055 {method.name}: its attach does not create a model of the peft library, so peft can't save it; "
            "set in_peft: ClassVar[bool] = False"
        )
    if method.batched and PeftMethod.stack == type(method).stack and PeftMethod.stack_into == type(method).stack_into:
        raise ModelError(
            f"FP4056 {method.name} sets batched, but defines neither stack nor stack_into; remove batched or define one"
        )
    return state


def draw_uniform(state: State, name: str, seed: int, bound: float) -> None:
    """Draw `state[name]` anew, uniform in +-`bound`, from a generator of its own."""
    generator = seeds.create_torch_generator(seed, f"start {name}", 0)
    state[name] = (2 * torch.rand(state[name].shape, generator=generator) - 1) * bound


_OF_MAMBA = re.compile(r"Module '(\w+)' is incompatible with Mamba-based models")
"""An error of peft that names a layer of Mamba; its kernel reads the layer's weights directly, without the adapter."""


def _create_refusal(method: str, model: str, layers: Set[str], error: Exception) -> ModelError:
    """Create the error for a model that peft refuses; for Mamba, it lists the linear layers that may be named."""
    of_mamba = _OF_MAMBA.search(str(error))
    if of_mamba is None:
        return ModelError(f"FP4052 peft can't put {method} into {model}: {error}")
    legal = tuple(sorted(layers - {"out_proj", "lm_head"}))
    return ModelError(
        f"FP4084 {method} can't train the layer {of_mamba[1]} of {model}, because a kernel reads its weights directly; "
        f'name other layers: --peft "{method}(targets={legal})"'
    )

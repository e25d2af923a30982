"""What a PEFT method is: which parameters are trained, where they sit, how they start, and how they may be averaged.

The reference is the `peft` library's own model, which `attach` builds; the sequential executor trains it. A method
that the batched executor supports also gives `stack`: the same layer with the parameters of K clients side by side.

Every method declares what it supports; anything else is refused by name before a run begins.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedpeft import seeds
from fedpeft.data.examples import Examples
from fedpeft.errors import ModelError
from fedpeft.models.layers import replace
from fedpeft.models.quantized import Precision
from fedpeft.models.task import FederatedModel, find_trainable, get_adapter_dtype
from fedpeft.parts import name_of
from fedpeft.peft.adapter import AdapterShape, Layout, Role, State, TensorSpec
from fedpeft.peft.factor_view import Factoring
from fedpeft.peft.low_rank import LowRank
from fedpeft.peft.stacked_layers import StackedLayer

PrivacyRoute = Literal["hooks", "vmap", "refused"]
"""How gradients per example are found, for DP-SGD: by Opacus' hooks on layers (fast, but every trained parameter must
be used by calling its own module), by `torch.func.vmap(grad)` of the whole model (right for everything that it can
trace), or not at all."""

WeightChanges = Callable[[State, AdapterShape | None], dict[str, Tensor]]
"""From a state in a client's form (None: the method's own) to what it changes in the weights of the base, (out, in) by
module."""


ROUTES = "routes"
"""What the generator of a layer's random choices is called: of a seed, a round, a client and a step."""

Pulls = dict[str, Callable[[Tensor], Tensor]]
"""What a layer calls `pulls`: by the name of one of its tensors, the gradient of a penalty at the tensor's value, in
its shape or with clients first. Executors add it to the loss' gradient once a step."""


class PeftMethod(ABC):
    """One method. Subclasses are frozen dataclasses; their fields are the user's settings."""

    batched: ClassVar[bool] = False
    """Whether the method has `stack`."""

    privacy: ClassVar[PrivacyRoute] = "vmap"
    """The route to gradients per example; "hooks" only where `test_per_example.py` has seen them agree."""

    tensors: ClassVar[tuple[str, ...]] = ()
    """How the names of its tensors end: what it declares to train, the head aside."""

    strategies: ClassVar[tuple[str, ...]] = ()
    """The strategies that are right for it; empty: every one whose own check its layout passes."""

    mixed_sizes: ClassVar[bool] = False
    """Whether clients may hold it in different sizes (`form`)."""

    residual: ClassVar[bool] = False
    """Whether a strategy may put what the adapter can't hold into the base below it."""

    merges: ClassVar[bool] = False
    """Whether the finished adapter can be worked into the base's own weights, exactly."""

    composes: ClassVar[bool] = False
    """Whether it can be one of several methods in one model: `lora(rank=8) + bitfit`."""

    called_elsewhere: ClassVar[dict[str, str]] = {"r": "rank", "lora_alpha": "alpha", "target_modules": "targets"}
    """Settings' names in the `peft` library, where they are others here."""

    in_peft: ClassVar[bool] = True
    """Whether the `peft` library has it, and saves it."""

    whole_model: ClassVar[bool] = False
    """Whether the result is saved as a model of its own."""

    few_bits: ClassVar[bool] = True
    """Whether clients may hold the base's linear layers in nf4 or int8, beside what this method trains."""

    batched_in_few_bits: ClassVar[bool] = False
    """Whether its layers of many clients work beside such layers, too."""

    regularised: ClassVar[bool] = False
    """Whether its layers pull tensors somewhere in each local step, whatever the rows are (`pulls`)."""

    reads_all_blocks: ClassVar[bool] = False
    """Whether a head reads the states of all blocks, and not of the last alone (`fedpeft.models.readout`)."""

    suited_head: ClassVar[str] = ""
    """How the head starts where nobody says, in an open run; empty: as suits the data."""

    of_pictures: ClassVar[bool] = False
    """Whether it is for bases that read pictures, and for no others."""

    saved_as: ClassVar[str] = ""
    """The method that a finished state is saved as one of (`as_saved`); empty: this one."""

    own_machine: ClassVar[str] = ""
    """What it needs that only the machine of a simulation has; empty: nothing, and real clients may use it."""

    @property
    def base_precision(self) -> Precision:
        """In how few bits the base's linear layers are held; empty: as the run's dtype says."""
        return ""

    def base_as_read(self, precision: str = "") -> dict[str, str]:
        """What tells the base as this method reads it from the plain one, in names of what is kept of it; `precision`:
        in how few bits it is held, where that is not the method's own."""
        told = {"precision": precision or self.base_precision, "read": "all blocks" if self.reads_all_blocks else ""}
        return {name: value for name, value in told.items() if value}

    def read(self, base: nn.Module) -> None:  # noqa: B027
        """Have `base`, in place, give what this method's head reads; by default its last hidden states, as it does."""

    def as_saved(self, model: FederatedModel, state: State) -> State:
        """A finished `state` of `model` as one of the method `saved_as`; by default as it is."""
        return state

    @property
    def name(self) -> str:
        """The method's name: its file's, or its plugin's."""
        return name_of(type(self))

    @property
    def form(self) -> AdapterShape | None:
        """LoRA rank and alpha, or a prompt's length; None for methods of one size."""
        return None

    @property
    def extra_tokens(self) -> int:
        """Positions that the method adds before each row."""
        return 0

    def sized(self, form: AdapterShape) -> dict[str, Any]:
        """The settings that give the method this form."""
        raise NotImplementedError

    @abstractmethod
    def config(self, base: nn.Module) -> Any:
        """The `peft.PeftConfig` that describes the adapter on `base`; None where the method is no peft adapter.

        Raises:
            ModelError: the model lacks what the settings name.
        """

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Put the adapter into `model.base`, its parameters trainable and of `adapter_dtype(dtype)`.

        Raises:
            ModelError: the model lacks what the method needs.
        """
        import peft

        layers = {name.rsplit(".", 1)[-1] for name, m in model.base.named_modules() if isinstance(m, nn.Linear)}
        try:
            config = self.config(model.base)
            if not isinstance(config, peft.PeftConfig):
                raise ModelError(
                    f"FP4051 {self.name}: config has to give a peft.PeftConfig, and has given {config!r:.80}; a method "
                    "that is no peft adapter has an attach of its own"
                )
            model.base = peft.get_peft_model(model.base, config)
        except (ValueError, KeyError) as error:
            raise _create_refusal(self.name, type(model.base).__name__, layers, error) from error
        self.settle(model.base)
        for parameter in model.base.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(get_adapter_dtype(dtype))

    def settle(self, base: nn.Module) -> None:  # noqa: B027
        """What is left to do once the `peft` library has put its layers into `base`; by default nothing."""

    def layout(self, model: FederatedModel) -> Layout:
        """The trainable tensors of a model that this method is attached to."""
        specs = []
        for name, parameter in find_trainable(model).items():
            role, module = self.role(name)
            specs.append(TensorSpec(name, tuple(parameter.shape), role, module))
        return Layout(tuple(specs), self.form)

    def frozen(self, model: FederatedModel) -> State:
        """What of a model's adapter is never trained, and is saved with the result; by default nothing."""
        return {}

    def owned(self, layout: Layout, seed: int, round_number: int, client: int, steps: int) -> State:
        """By name, the share of a client's local `steps` in which each entry was trained, in a shape that broadcasts;
        names that are left out: all of them. By default no name is in it, nor where `steps` is 0: it is not told."""
        return {}

    def fitted(self, model: FederatedModel, held: Examples) -> State:
        """What of a finished `model` is fitted on `held` rows when a run ends, and is `frozen` in it from then on; by
        default nothing. Under privacy it is not asked unless these rows are public."""
        return {}

    def attach_saved(self, model: FederatedModel, tensors: State) -> None:
        """As `attach`, in fp32, for a finished result, whose saved `tensors` hold what is `frozen`."""
        self.attach(model, "fp32")

    def role(self, name: str) -> tuple[Role, str]:
        """Role and module of the tensor called `name`."""
        if name.startswith("head."):
            return "head", "head"
        for ending in self.tensors:
            if ending and name.endswith("." + ending):
                return "plain", name.removesuffix("." + ending)
        return "plain", name.rpartition(".")[0]

    def start(self, model: FederatedModel, seed: int) -> State:
        """The initial global state, fp32; by default the attached model's own values."""
        return {name: p.detach().to(torch.float32).clone() for name, p in find_trainable(model).items()}

    def changes(self, model: FederatedModel, state: State) -> dict[str, LowRank] | None:
        """What `state` adds to the weights of adapted layers, by module, where the adapter is saved as plain LoRA.

        None, the default, where the attached model saves itself as the `peft` library does.
        """
        return None

    def factoring(self, layout: Layout) -> Factoring | None:
        """How strategies see the tensors, where they are not exchanged as factors; None, the default: as they are."""
        return None

    def weight_changes(self, model: FederatedModel) -> WeightChanges | None:
        """What states change in the base's weights, where aggregation is not exact and its error is reported."""
        return None

    def merged(self, model: FederatedModel) -> nn.Module:
        """The plain base of a finished `model`, its adapter worked into the weights; only where `merges`."""
        base: Any = model.base
        plain: nn.Module = base.merge_and_unload()
        return plain

    def stack_into(self, model: FederatedModel, tensors: Sequence[TensorSpec], clients: int) -> None:
        """Put the adapters of `clients` clients into `model.base`, a layer at a time."""
        modules: dict[str, dict[str, tuple[int, ...]]] = {}
        for spec in tensors:
            modules.setdefault(spec.module, {})[spec.name.removeprefix(spec.module + ".")] = spec.shape
        for path, shapes in modules.items():
            replace(model.base, path, self.stack(path, model.base.get_submodule(path), shapes, clients))

    def stack(self, path: str, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """`layer` at `path` with the adapters of `clients` clients; `shapes` by name within the module."""
        raise NotImplementedError


def create_start(method: PeftMethod, model: FederatedModel, seed: int) -> State:
    """The initial global state of a `model` that a method, which may be anybody's, is attached to.

    Raises:
        ModelError: it makes other tensors than its layout has, or says of itself what it is not.
    """
    state, shapes = method.start(model, seed), method.layout(model).shapes
    for name in sorted(state.keys() | shapes.keys()):
        made = tuple(state[name].shape) if name in state else "missing"
        if made != shapes.get(name):
            raise ModelError(
                f"FP4053 {method.name}: start gives {name} as {made}, and the model trains "
                f"{shapes.get(name, 'no such')}"
            )
        if not bool(state[name].isfinite().all()):
            raise ModelError(f"FP4054 {method.name}: start gives {name} values that are NaN or infinite")
    if method.in_peft and not (method.whole_model or method.saved_as or hasattr(model.base, "peft_config")):
        raise ModelError(
            f"FP4055 {method.name}: its attach makes no model of the peft library, which could save it; "
            "say in_peft: ClassVar[bool] = False"
        )
    if method.batched and PeftMethod.stack == type(method).stack and PeftMethod.stack_into == type(method).stack_into:
        raise ModelError(
            f"FP4056 {method.name} says that it is batched, and has neither stack nor stack_into; leave that out"
        )
    return state


def draw_uniform(state: State, name: str, seed: int, bound: float) -> None:
    """Draw `state[name]` anew, uniform in +-bound, from a generator of its own."""
    generator = seeds.create_torch_generator(seed, f"start {name}", 0)
    state[name] = (2 * torch.rand(state[name].shape, generator=generator) - 1) * bound


_OF_MAMBA = re.compile(r"Module '(\w+)' is incompatible with Mamba-based models")
"""In a sentence of peft's, a layer whose weights a kernel reads past the adapter."""


def _create_refusal(method: str, model: str, layers: Set[str], error: Exception) -> ModelError:
    """Return what a user reads if peft refuses a model; of Mamba, with those of its linear layers that can be named."""
    of_mamba = _OF_MAMBA.search(str(error))
    if of_mamba is None:
        return ModelError(f"FP4052 peft can't put {method} into {model}: {error}")
    legal = tuple(sorted(layers - {"out_proj", "lm_head"}))
    return ModelError(
        f"FP4084 {method} can't train the layer {of_mamba[1]} of {model}, whose weights its kernel reads past an "
        "adapter; "
        f'name other layers: --peft "{method}(targets={legal})"'
    )

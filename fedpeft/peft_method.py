"""What a PEFT method is: which parameters are trained, where they sit, and how they start.

The reference is the `peft` library's own model, which `attach` builds; the sequential executor trains it. A method
that the batched executor supports also gives `stack`: the same layer with the parameters of K clients side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from fedpeft.adapter import ClientForm, Layout, Role, State, TensorSpec
from fedpeft.low_rank import LowRank
from fedpeft.parts import Family
from fedpeft.stacked import StackedLayer
from fedpeft.task import FederatedModel, adapter_dtype, trainable

PrivacyRoute = Literal["hooks", "vmap", "refused"]
"""How gradients per example are found, for DP-SGD: by Opacus' hooks on layers (fast, but every trained parameter must
be used by calling its own module), by `torch.func.vmap(grad)` of the whole model (right for everything that it can
trace), or not at all."""


class PeftMethod(ABC):
    """One method. Subclasses are frozen dataclasses; their fields are the user's settings."""

    batched: ClassVar[bool] = False
    """Whether the method has `stack`."""

    privacy: ClassVar[PrivacyRoute] = "vmap"
    """The route to gradients per example; "hooks" only where tests/test_per_example.py has seen them agree."""

    @property
    def form(self) -> ClientForm | None:
        """LoRA rank and alpha; None for methods without LoRA factors."""
        return None

    @abstractmethod
    def config(self, base: nn.Module) -> Any:
        """The `peft.PeftConfig` that describes the adapter on `base`; None where the method is no peft adapter.

        Raises:
            ModelError: the model lacks what the settings name.
        """

    def attach(self, model: FederatedModel, dtype: str) -> None:
        """Put the adapter into `model.base`, its parameters trainable and of `adapter_dtype(dtype)`."""
        import peft

        wrapped = peft.get_peft_model(model.base, self.config(model.base))
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(adapter_dtype(dtype))
        model.base = wrapped

    def layout(self, model: FederatedModel) -> Layout:
        """The trainable tensors of a model that this method is attached to."""
        specs = []
        for name, parameter in trainable(model).items():
            role, module = self.role(name)
            specs.append(TensorSpec(name, tuple(parameter.shape), role, module))
        return Layout(tuple(specs), self.form)

    def role(self, name: str) -> tuple[Role, str]:
        """Role and module of the tensor called `name`."""
        if name.startswith("head."):
            return "head", "head"
        return "plain", name.rpartition(".")[0]

    def start(self, model: FederatedModel, seed: int) -> State:
        """The initial global state, fp32; by default the attached model's own values."""
        return {name: p.detach().to(torch.float32).clone() for name, p in trainable(model).items()}

    def changes(self, model: FederatedModel, state: State) -> dict[str, LowRank] | None:
        """What `state` adds to the weights of adapted layers, by module, where the adapter is saved as plain LoRA.

        None, the default, where the attached model saves itself as the `peft` library does.
        """
        return None

    def stack(self, layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], clients: int) -> StackedLayer:
        """`layer` with the adapters of `clients` clients; `shapes` by name within the module, without the stack."""
        raise NotImplementedError


PEFT_METHODS: Family[PeftMethod] = Family("fedpeft.peft_methods", "PEFT method")
"""All methods, by file name."""

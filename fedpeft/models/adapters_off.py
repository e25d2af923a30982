"""A model with its adapters off, as a reference that needs no second copy of the base.

Every adapter of a layer wraps that layer and calls it `base_layer`. This holds for our adapters and the `peft`
library's, for one client or for many in one pass. Each wrapper is bypassed, and the layer inside computes its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fedpeft.errors import ConfigError

INSIDE = "base_layer"


def _find_wrappers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if INSIDE in module._modules}


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Let `model` compute the output of its base alone while the context is open."""
    wrappers = _find_wrappers(model).values()
    for wrapper in wrappers:
        vars(wrapper)["forward"] = wrapper.get_submodule(INSIDE).__call__
    try:
        yield
    finally:
        for wrapper in wrappers:
            del vars(wrapper)["forward"]


def check_adapters_come_off(model: nn.Module, what: str) -> None:
    """Refuse a model that trains a tensor outside the adapters that `disable_adapters` turns off.

    Args:
        model: the model with its adapter attached.
        what: the name of the feature that needs the reference, for the message.

    Raises:
        ConfigError: names `what` and the tensor.
    """
    wrappers = _find_wrappers(model)
    for name, parameter in model.named_parameters():
        around = [w for w in wrappers if name.startswith(f"{w}.") and not name.startswith(f"{w}.{INSIDE}.")]
        if parameter.requires_grad and not around:
            raise ConfigError(
                f"FP1204 {what} compares with the base without adapters, and {name} does not adapt layers, so "
                "it can't be switched off; choose a method that adapts layers, such as --peft lora"
            )

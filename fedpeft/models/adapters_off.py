"""A model with its adapters off, as a reference that needs no second copy of the base.

Every adapter of a layer wraps that layer and calls it `base_layer`, ours and the `peft` library's, of one client or of
many in one pass. So a wrapper is passed by: what it would do is done by the layer inside.
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
    """While it is open, `model` computes what its base alone would."""
    wrappers = _find_wrappers(model).values()
    for wrapper in wrappers:
        vars(wrapper)["forward"] = wrapper.get_submodule(INSIDE).__call__
    try:
        yield
    finally:
        for wrapper in wrappers:
            del vars(wrapper)["forward"]


def check_adapters_come_off(model: nn.Module, what: str) -> None:
    """Refuse a model that trains something which `disable_adapters` leaves on.

    Raises:
        ConfigError: `what` is named, and a tensor.
    """
    wrappers = _find_wrappers(model)
    for name, parameter in model.named_parameters():
        around = [w for w in wrappers if name.startswith(f"{w}.") and not name.startswith(f"{w}.{INSIDE}.")]
        if parameter.requires_grad and not around:
            raise ConfigError(
                f"FP1204 {what} compares with the base whose adapters are off, and {name} is trained in no layer's "
                "adapter, so it would stay on; take a method that adapts layers, such as --peft lora"
            )

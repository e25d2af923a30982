"""Where adapters go: the transformer blocks of a base model and the linear layers inside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.parts import setting

KEY_PROJECTIONS = ("key", "k_proj")
"""What the projection to keys is called in the attention modules of models."""

QUERY_PROJECTIONS = ("query", "q_proj")
"""And that to queries."""


UPPERMOST = 4
"""So many of the uppermost blocks a method adapts where nothing is said; of fewer, and of a model of images, all."""

Layers = int | tuple[int, ...] | None
"""Which transformer blocks a method adapts: how many of the uppermost, 0 for all, or their indices from 0; None:
as many as `count_default_blocks` says."""


def declare_layers() -> Any:
    """The setting `layers` of a PEFT method."""
    meaning = f"blocks to adapt: so many uppermost, 0: all; or by index: (0, 2); none: {UPPERMOST}, of images all"
    return setting(None, meaning, low=0)


CROSS_ATTENTION = ("encoder_attn", "crossattention", "EncDecAttention")
"""What attention to another model's states is called: a decoder alone, as of BART, has none to attend to."""


Blocks = tuple[str, nn.ModuleList]
"""Path and list of transformer blocks."""


def get_reader(base: nn.Module) -> Any:
    """What makes hidden states of tokens: of a language model all but its output layer."""
    outputs = getattr(base, "get_output_embeddings", None)
    return base.base_model if callable(outputs) and outputs() is not None else base


def unwrap(base: Any) -> Any:
    """A base without the wrapping of the `peft` library, where it has any."""
    return base.get_base_model() if hasattr(base, "get_base_model") else base


def is_unused(name: str) -> bool:
    """Whether a module inside a block, by its path there, is of no use in a model that runs alone."""
    return any(word in CROSS_ATTENTION for word in name.split("."))


def is_single_stack(base: nn.Module) -> bool:
    """Whether it is no encoder with a decoder."""
    return len(find_stacks(base)) == 1


def find_blocks(base: nn.Module) -> Blocks:
    """Path and list of the transformer blocks: the longest ModuleList of the model.

    Raises:
        ModelError: the model has none.
    """
    found = [(name, module) for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    if not found:
        raise ModelError(
            f"FP4023 {type(base).__name__} has no list of transformer blocks; fedpeft adapts transformers only"
        )
    return max(found, key=lambda item: len(item[1]))


def find_stacks(base: nn.Module) -> list[Blocks]:
    """The blocks that a row passes, in order: of an encoder-decoder the encoder's and the decoder's.

    Raises:
        ModelError: the model has none.
    """
    sides: list[Blocks] = []
    for side in ("encoder", "decoder"):
        at = next((name for name, _ in base.named_modules() if name.split(".")[-1] == side), None)
        if at is None:
            return [find_blocks(base)]
        found = _find_outer_lists(at, base.get_submodule(at))
        if not found:
            return [find_blocks(base)]
        sides.append(max(found, key=lambda item: len(item[1])))
    return sides


def _find_outer_lists(at: str, side: nn.Module) -> list[Blocks]:
    """The lists of modules of a side that lie in no other: a block of T5 is a list, too, of three in its decoder."""
    found: list[Blocks] = []
    for name, module in side.named_modules(prefix=at):
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    return found


def count_layers(base: nn.Module) -> int:
    """How many layers a row passes; ALBERT's share blocks, elsewhere each is one."""
    config, count = getattr(base, "config", None), sum(len(stack) for _, stack in find_stacks(base))
    shared = getattr(config, "num_hidden_groups", None) == count
    return int(getattr(config, "num_hidden_layers", 0)) if shared else count


def choose_blocks(base: nn.Module, layers: Layers, method: str = "the PEFT method") -> dict[str, nn.Module]:
    """The blocks that `layers` of the model pass, lowest first, by path.

    Of an encoder-decoder a number counts in either of them, and indices go on from the encoder into the decoder.

    Args:
        base: the model.
        layers: this many uppermost ones (0: all), or those with these indices, counted from 0 at the input; None:
            `count_default_blocks`.
        method: whom that concerns.

    Raises:
        ModelError: the model has fewer layers; or none is named, or one twice.
    """
    sides = find_stacks(base)
    if len(sides) == 1:
        [(path, stack)] = sides
        return {f"{path}.{i}": stack[i] for i in _choose_indices(base, layers, method)}
    every = [(f"{path}.{i}", block) for path, stack in sides for i, block in enumerate(stack)]
    if isinstance(layers, tuple):
        _check_named(layers, len(every), method)
        return dict(every[i] for i in sorted(layers))
    longest = max(len(stack) for _, stack in sides)
    layers = count_default_blocks(base, longest) if layers is None else layers
    if layers > longest:
        raise ModelError(
            f"FP4024 layers={layers} of {method} exceeds the {longest} blocks of the encoder and of the decoder"
        )
    first = [max(0, len(stack) - (layers or longest)) for _, stack in sides]
    return {
        f"{path}.{i}": stack[i]
        for begin, (path, stack) in zip(first, sides, strict=True)
        for i in range(begin, len(stack))
    }


def count_default_blocks(base: nn.Module, every: int) -> int:
    """How many of a model's blocks, the uppermost, a method adapts where nothing is said.

    Of a model of images all: rows are short there, and what pretraining has not seen begins in the lowest blocks. On
    Fashion-MNIST all blocks of DINOv2 gain twice as much on the frozen probe as four (docs/choosing.md).
    """
    return every if getattr(base, "main_input_name", "") == "pixel_values" else min(UPPERMOST, every)


def _check_named(layers: tuple[int, ...], every: int, method: str) -> None:
    if not layers or len(set(layers)) < len(layers) or not all(0 <= i < every for i in layers):
        raise ModelError(
            f"FP4025 layers={layers} of {method} must name blocks of the model, each once, by their index from 0 to "
            f"{every - 1}"
        )


def _choose_indices(base: nn.Module, layers: Layers, method: str) -> list[int]:
    """Indices of the blocks that `layers` pass where there is one stack, lowest first.

    ALBERT's layers share blocks: the uppermost one passes the last block, which lower layers pass, too.
    """
    count, every = len(find_blocks(base)[1]), count_layers(base)
    if isinstance(layers, tuple):
        _check_named(layers, every, method)
        passed: Sequence[int] = layers
    else:
        layers = count_default_blocks(base, every) if layers is None else layers
        if layers > every:
            raise ModelError(f"FP4026 layers={layers} of {method} exceeds the {every} transformer blocks of the model")
        passed = range(every - layers if layers else 0, every)
    return sorted({i * count // every for i in passed})


def find_linear_layers(base: nn.Module, among: Layers = 0) -> dict[str, nn.Linear]:
    """The frozen linear layers inside the blocks `among` which they are sought (`choose_blocks`), by module path.

    Trainable ones belong to an adapter. A layer that another adapter has wrapped is found as `....base_layer`; one
    that `peft` has wrapped by the wrapper's own path, since `peft` puts nothing inside its layers.

    Raises:
        ModelError: the model has no such blocks.
    """
    found: dict[str, nn.Linear] = {}
    alone = is_single_stack(base)
    for path, block in choose_blocks(base, among).items():
        wrapper = None
        for name, module in block.named_modules():
            if (wrapper and name.startswith(wrapper)) or (alone and is_unused(name)):
                continue
            if hasattr(module, "get_base_layer"):
                wrapper = name + "."
                module = get_innermost(module)
            if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                found[f"{path}.{name}"] = module
    return found


def get_innermost(layer: nn.Module) -> nn.Module:
    """The layer of the base inside the adapters that wrap it."""
    while hasattr(layer, "base_layer"):
        layer = layer.get_submodule("base_layer")
    return layer


def find_target_layers(base: nn.Module, targets: str | Sequence[str], among: Layers = 0) -> list[str]:
    """Module paths of the linear layers that `targets` names: "all", or suffixes such as ("query", "value").

    Raises:
        ModelError: a suffix matches no linear layer of the model.
    """
    layers = find_linear_layers(base, among)
    if not layers:
        raise ModelError(
            f"FP4027 the blocks of {type(base).__name__} hold no linear layers of torch that could be adapted; take "
            "--peft bitfit, prompt_tuning or full, or another model"
        )
    if targets == "all":
        return list(layers)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    endings = {_remove_wrappers(name).split(".", len(find_stacks(base)[0][0].split(".")) + 1)[-1] for name in layers}
    for target in wanted:
        if not any(_has_suffix(name, target) for name in layers):
            raise ModelError(
                f"FP4028 the model has no linear layer called {target!r}; its layers: {', '.join(sorted(endings))}, or "
                "all"
            )
    return [name for name in layers if any(_has_suffix(name, target) for target in wanted)]


def _has_suffix(name: str, target: str) -> bool:
    return _remove_wrappers(name) == target or _remove_wrappers(name).endswith("." + target)


def _remove_wrappers(name: str) -> str:
    return name.replace(".base_layer", "")


def find_by_endings(base: nn.Module, endings: Sequence[str], among: Layers = 0) -> list[str]:
    """Module paths of the linear layers whose names end like one of `endings`, such as ".key"."""
    return [name for name in find_linear_layers(base, among) if _remove_wrappers(name).endswith(tuple(endings))]


def find_lowest_block(base: nn.Module, modules: Sequence[str]) -> int:
    """Index of the lowest block that holds one of `modules`, or how many blocks there are where there are no modules.

    0 where one lies outside the blocks.
    """
    path, stack = find_blocks(base)
    prefix = path + "."
    indices = [int(m.removeprefix(prefix).split(".")[0]) if m.startswith(prefix) else 0 for m in modules]
    return min(indices, default=len(stack))


def replace(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path` of `root`."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)

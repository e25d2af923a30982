"""Places for adapters: the transformer blocks of a base model and the linear layers inside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedpeft.errors import ModelError
from fedpeft.parts import setting

KEY_PROJECTIONS = ("key", "k_proj")
"""Names of the projection to keys in attention modules."""

QUERY_PROJECTIONS = ("query", "q_proj")
"""Names of the projection to queries in attention modules."""


UPPERMOST = 4
"""Number of uppermost blocks that a method adapts by default; image models and smaller models are adapted in all."""

Layers = int | tuple[int, ...] | None
"""Transformer blocks that a method adapts: the top n (0: all), or indices from 0; None: `count_default_blocks`."""


def declare_layers() -> Any:
    """Declare the setting `layers` of a PEFT method."""
    meaning = f"blocks to adapt: the top n, 0: all; or indices: (0, 2); none: the top {UPPERMOST}, for images all"
    return setting(None, meaning, low=0)


CROSS_ATTENTION = ("encoder_attn", "crossattention", "EncDecAttention")
"""Names of attention to another model's states; a decoder alone, such as BART's, does not use it."""


Blocks = tuple[str, nn.ModuleList]
"""Path and list of transformer blocks."""


def get_reader(base: nn.Module) -> Any:
    """Return the module that maps tokens to hidden states; for a language model, all but its output layer."""
    outputs = getattr(base, "get_output_embeddings", None)
    return base.base_model if callable(outputs) and outputs() is not None else base


def unwrap(base: Any) -> Any:
    """Return the base without the `peft` library's wrapper, if it has one."""
    return base.get_base_model() if hasattr(base, "get_base_model") else base


def is_unused(name: str) -> bool:
    """Return whether a module, given by its path inside a block, is unused in a model that runs alone."""
    return any(word in CROSS_ATTENTION for word in name.split("."))


def is_single_stack(base: nn.Module) -> bool:
    """Return whether the model has one stack of blocks, unlike an encoder with a decoder."""
    return len(find_stacks(base)) == 1


def find_blocks(base: nn.Module) -> Blocks:
    """Return path and list of the transformer blocks: the longest ModuleList of the model.

    Raises:
        ModelError: the model has none.
    """
    lists = [(name, module) for name, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ModelError(f"FP4023 {type(base).__name__} has no list of transformer blocks; choose a transformer")
    return max(lists, key=lambda item: len(item[1]))


def find_stacks(base: nn.Module) -> list[Blocks]:
    """Return the lists of blocks that an example passes, in order; an encoder-decoder has two.

    Raises:
        ModelError: the model has none.
    """
    sides: list[Blocks] = []
    for side in ("encoder", "decoder"):
        at = next((name for name, _ in base.named_modules() if name.split(".")[-1] == side), None)
        if at is None:
            return [find_blocks(base)]
        lists = _find_outer_lists(at, base.get_submodule(at))
        if not lists:
            return [find_blocks(base)]
        sides.append(max(lists, key=lambda item: len(item[1])))
    return sides


def _find_outer_lists(at: str, side: nn.Module) -> list[Blocks]:
    """Return the lists of modules of a side that are in no other list. T5's blocks are lists themselves."""
    lists: list[Blocks] = []
    for name, module in side.named_modules(prefix=at):
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer, _ in lists):
            lists.append((name, module))
    return lists


def count_layers(base: nn.Module) -> int:
    """Count the layers that an example passes.

    ALBERT's layers share blocks; in other models each block is one layer.
    """
    config, count = getattr(base, "config", None), sum(len(stack) for _, stack in find_stacks(base))
    shared = getattr(config, "num_hidden_groups", None) == count
    return int(getattr(config, "num_hidden_layers", 0)) if shared else count


def choose_blocks(base: nn.Module, layers: Layers, method: str = "the PEFT method") -> dict[str, nn.Module]:
    """Return the blocks that the selected layers of a model pass, lowest first, by path.

    For an encoder-decoder, a number counts in either of them, and indices continue from the encoder into the decoder.

    Args:
        base: the model.
        layers: the top n (0: all), or indices from 0 at the input; None: `count_default_blocks`.
        method: the PEFT method that adapts them, for messages.

    Raises:
        ModelError: the model has fewer layers, or the indices are empty or repeated.
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
            f"FP4024 layers={layers} of {method} exceeds the {longest} blocks of the encoder and of the "
            f"decoder; give at most {longest}"
        )
    first = [max(0, len(stack) - (layers or longest)) for _, stack in sides]
    return {
        f"{path}.{i}": stack[i]
        for begin, (path, stack) in zip(first, sides, strict=True)
        for i in range(begin, len(stack))
    }


def count_default_blocks(base: nn.Module, every: int) -> int:
    """Return the number of uppermost blocks that a method adapts by default, of `every` blocks of a stack.

    All blocks of image models are adapted: their inputs are short, and differences from the pretraining data begin in
    the lowest blocks. On Fashion-MNIST, all blocks of DINOv2 gain twice as much over the frozen probe as four
    (docs/choosing.md).
    """
    return every if getattr(base, "main_input_name", "") == "pixel_values" else min(UPPERMOST, every)


def _check_named(layers: tuple[int, ...], every: int, method: str) -> None:
    if not layers or len(set(layers)) < len(layers) or not all(0 <= i < every for i in layers):
        raise ModelError(
            f"FP4025 layers={layers} of {method} must name blocks of the model, each once, by their index from 0 to "
            f"{every - 1}"
        )


def _choose_indices(base: nn.Module, layers: Layers, method: str) -> list[int]:
    """Return the indices of the blocks that `layers` pass in a model of one stack, lowest first.

    ALBERT's layers share blocks: the uppermost layer passes the last block, which lower layers pass, too.
    """
    count, every = len(find_blocks(base)[1]), count_layers(base)
    if isinstance(layers, tuple):
        _check_named(layers, every, method)
        passed: Sequence[int] = layers
    else:
        layers = count_default_blocks(base, every) if layers is None else layers
        if layers > every:
            raise ModelError(
                f"FP4026 layers={layers} of {method} exceeds the {every} transformer blocks of the model; give "
                f"at most {every}"
            )
        passed = range(every - layers if layers else 0, every)
    return sorted({i * count // every for i in passed})


def find_linear_layers(base: nn.Module, among: Layers = 0) -> dict[str, nn.Linear]:
    """Return the frozen linear layers inside the blocks `among` (see `choose_blocks`), by module path.

    Trainable layers belong to an adapter. A layer inside another adapter has the path `....base_layer`. A layer inside
    an adapter of `peft` has the adapter's path, since `peft` puts nothing inside its layers.

    Raises:
        ModelError: the model has no such blocks.
    """
    layers: dict[str, nn.Linear] = {}
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
                layers[f"{path}.{name}"] = module
    return layers


def get_innermost(layer: nn.Module) -> nn.Module:
    """Return the layer of the base inside the adapters that wrap it."""
    while hasattr(layer, "base_layer"):
        layer = layer.get_submodule("base_layer")
    return layer


def find_target_layers(base: nn.Module, targets: str | Sequence[str], among: Layers = 0) -> list[str]:
    """Return the module paths of the linear layers that `targets` names: "all", or suffixes such as ("query", "value").

    Raises:
        ModelError: a suffix matches no linear layer of the model.
    """
    layers = find_linear_layers(base, among)
    if not layers:
        raise ModelError(
            f"FP4027 the blocks of {type(base).__name__} contain no linear layers of torch to adapt; use --peft "
            "bitfit, prompt_tuning or full, or another model"
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
    """Return the module paths of the linear layers whose names end with one of `endings`, such as ".key"."""
    return [name for name in find_linear_layers(base, among) if _remove_wrappers(name).endswith(tuple(endings))]


def find_lowest_block(base: nn.Module, modules: Sequence[str]) -> int:
    """Return the index of the lowest block that contains one of `modules`, or the number of blocks without modules.

    The result is 0 if a module is outside the blocks.
    """
    path, stack = find_blocks(base)
    prefix = path + "."
    indices = [int(m.removeprefix(prefix).split(".")[0]) if m.startswith(prefix) else 0 for m in modules]
    return min(indices, default=len(stack))


def replace(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path` of `root`."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)

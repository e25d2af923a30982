"""The saved result of a run: a standard PEFT adapter, the head and the labels.

    adapter/    what `peft.PeftModel.from_pretrained` loads on the base model; of methods that the library does not
                have, adapter.safetensors and method.json, which names the method and marks the base's adapted layers;
                and, for classification, head.safetensors (head.weight, head.bias) and labels.json; of two towers
                with a connector, that in head.safetensors
    model/      the whole model instead, after full fine-tuning

The reported test score comes from `load` and `score`, with the saved files, the original base, fp32 and fixed batches.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from fedpeft.errors import FedpeftError, RunError
from fedpeft.machine.files import check_regular_file, raise_write_errors, read_json
from fedpeft.machine.files import copy as copy_file
from fedpeft.machine.files import replace as replace_file
from fedpeft.models.abilities import ConvertsHead
from fedpeft.models.layers import get_innermost
from fedpeft.models.task import PEFT_PREFIX, FederatedModel, Task, find_trainable
from fedpeft.peft.abilities import SavesFrozen
from fedpeft.peft.adapter import State
from fedpeft.peft.low_rank import LowRank, recompress


def save(
    folder: Path,
    model: FederatedModel,
    state: State,
    labels: Sequence[str] | None,
    changes: Mapping[str, LowRank] | None = None,
    own: str | None = None,
    base_name: str = "",
) -> None:
    """Write `state` to `folder`/adapter, or to `folder`/model after full fine-tuning.

    Args:
        folder: the run folder; a previous result in it is replaced.
        model: the model with the adapter attached; its parameters are set to `state`.
        state: the finished state.
        labels: names of the classes; None: the task has no classes.
        changes: what is added to the frozen weights, by module, to be saved as LoRA factors; None: the `peft` library
            saves the model's own adapter.
        own: the text of a method that the `peft` library can't save; None: it can.
        base_name: the public name of the base model.

    Raises:
        RunError: the files can't be written.
    """
    is_adapter = changes is not None or own is not None or hasattr(model.base, "peft_config")
    target = folder / ("adapter" if is_adapter else "model")
    with raise_write_errors(target):
        if target.exists():
            shutil.rmtree(target)
        if changes is not None:
            save_lora(target, changes)
        elif own is not None:
            target.mkdir(exist_ok=True)
            _save_own(target, own, model, state)
        else:
            put(model, state)
            model.base.save_pretrained(str(target))  # type: ignore[operator]
        # peft writes an empty template; `fedpeft.reporting.exports.model_card` writes a README.md with content.
        (target / "README.md").unlink(missing_ok=True)
        if (target / ADAPTER_CONFIG).is_file():
            _describe(target / ADAPTER_CONFIG, base_name, model.peft_task)
        head = {n: t.float().contiguous() for n, t in state.items() if n.startswith("head.")}
        if head:
            save_file(head, target / HEAD)
        if labels is not None:
            (target / "labels.json").write_text(json.dumps(list(labels), indent=1) + "\n", encoding="utf-8")


def is_complete(folder: Path, labels: bool) -> bool:
    """Return whether `folder` contains all files that `save` writes, undamaged.

    Args:
        folder: the run folder.
        labels: whether names of classes are among the files.
    """
    target = folder / ("adapter" if (folder / "adapter").is_dir() else "model")
    if labels and not ((target / HEAD).is_file() and (target / "labels.json").is_file()):
        return False
    weights, described = list(target.glob("*.safetensors")), list(target.glob("*.json"))
    try:
        for file in weights:
            with safe_open(check_regular_file(file), "pt"):  # reads and checks the offsets, but not the tensors
                pass
        for file in described:
            json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError):
        return False
    return any(file.name != HEAD for file in weights) and any(file.name != "labels.json" for file in described)


HEAD = "head.safetensors"
"""The head of a classifier, or the connector of two towers."""


def export_head(target: Path, task: Task) -> None:
    """Convert the head in the folder `target` for use without fedpeft, if the task `ConvertsHead`.

    `load` expects the head as `save` writes it, so only exported copies are converted.

    Raises:
        RunError: the file can't be read or written.
    """
    file = target / HEAD
    if not file.is_file() or not isinstance(task, ConvertsHead):
        return
    with raise_write_errors(file):
        held = {name: tensor.clone() for name, tensor in load_file(check_regular_file(file)).items()}
        exported = task.export_head({name.removeprefix("head."): tensor for name, tensor in held.items()})
        save_file({f"head.{name}": tensor.contiguous() for name, tensor in exported.items()}, file)


ADAPTER_CONFIG = "adapter_config.json"
"""The `peft` library's description of an adapter."""

OWN_METHOD = "method.json"
OWN_TENSORS = "adapter.safetensors"
"""Files of a method that the `peft` library does not implement."""


FILES = (ADAPTER_CONFIG, "adapter_model.safetensors", OWN_METHOD, OWN_TENSORS, HEAD, "labels.json")
"""All files that an adapter can have."""


def copy(files: Path, target: Path) -> None:
    """Copy a saved adapter by file name from the folder `files` to the new folder `target`.

    Raises:
        RunError: a file can't be read or written.
    """
    with raise_write_errors(target):
        target.mkdir()
        for name in FILES:
            if (files / name).exists():
                copy_file(files / name, target / name)


def _save_own(target: Path, own: str, model: FederatedModel, state: State) -> None:
    from fedpeft.parts.families import PEFT_METHODS

    method = PEFT_METHODS.build(own)
    tensors = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    if isinstance(method, SavesFrozen):
        tensors |= method.frozen(model)
    save_file({n: t.detach().cpu().float().contiguous() for n, t in tensors.items()}, target / OWN_TENSORS)
    described = {"method": own, "base": record_marks(model.base, {t.module for t in method.layout(model).tensors})}
    (target / OWN_METHOD).write_text(json.dumps(described) + "\n", encoding="utf-8")


def add(folder: Path, tensors: State) -> None:
    """Add `tensors` to the saved result of a method that `peft` does not implement; if that fails, it is unchanged.

    Raises:
        RunError: the file can't be read or written.
    """
    file = folder / "adapter" / OWN_TENSORS
    with raise_write_errors(file):
        held = {name: tensor.clone() for name, tensor in load_file(check_regular_file(file)).items()}
        more = {n: t.detach().cpu().float().contiguous() for n, t in tensors.items()}
        replace_file(file, to_bytes(held | more))


def record_marks(base: nn.Module, modules: Iterable[str]) -> dict[str, list[float]]:
    """Return some weights of each frozen linear layer in `modules`, by module.

    `has_same_marks` recognizes the layers by these entries in any precision.
    """
    marks = {}
    for path in sorted(modules):
        try:
            layer = get_innermost(base.get_submodule(path))
        except AttributeError:
            continue
        if type(layer) is nn.Linear and layer.weight.is_floating_point():
            marks[path] = [float(f"{entry:.4g}") for entry in layer.weight.detach()[0, :MARK].tolist()]
    return marks


MARK = 64
"""Number of entries of a layer's first row that identify it."""


def has_same_marks(theirs: Any, ours: Mapping[str, list[float]]) -> bool:
    """Return whether all layers that are in both have the same weights, up to rounding to few bits."""
    if not isinstance(theirs, dict):
        return False
    for module, entries in ours.items():
        one, other = (torch.tensor(row, dtype=torch.float64) for row in (theirs.get(module, entries), entries))
        if one.shape != other.shape or torch.cosine_similarity(one, other, dim=0) < 0.9:
            return False
    return True


def _describe(file: Path, base_name: str, task: str) -> None:
    """Set the base's public name and the task type in an adapter's configuration.

    A classifier has no task type: `peft`'s Auto classes then refuse to load it with an untrained head.
    """
    config = json.loads(file.read_text(encoding="utf-8"))
    prompts = "num_virtual_tokens" in config  # peft needs the task type of prompt models
    config |= {"base_model_name_or_path": base_name, "auto_mapping": None}
    config["task_type"] = task or (config["task_type"] if prompts else None)
    for name in ("target_modules", "feedforward_modules"):  # sets, whose order differs between processes
        if isinstance(config.get(name), list):
            config[name].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def put(model: FederatedModel, state: State) -> None:
    """Set the trainable parameters of `model` to `state`."""
    parameters = find_trainable(model)
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor.reshape(parameters[name].shape))


def save_lora(target: Path, changes: Mapping[str, LowRank]) -> None:
    """Write changes of weights as a standard PEFT LoRA adapter: B and A are the factors, and alpha / rank is 1.

    Layers may differ in rank; peft stores the ranks in `rank_pattern`.
    """
    from peft import LoraConfig

    ranks = {module: change.width for module, change in changes.items()}
    most = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != most}
    config = LoraConfig(
        r=most,
        lora_alpha=most,
        target_modules=list(changes),
        rank_pattern=others,
        alpha_pattern=dict(others),
        bias="none",
        inference_mode=True,
    )
    config.save_pretrained(str(target))
    tensors = {}
    for module, change in changes.items():
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = change.right.float().contiguous()
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = change.left.float().contiguous()
    save_file(tensors, target / "adapter_model.safetensors")


ROUNDING = 1e-14
"""Share of a matrix's energy that is below the rounding of fp32."""


def add_residual(effective: Mapping[str, LowRank], residual: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Add the residuals in the base to the adapter's changes, as factors of the rank of the sum, at least 1."""
    changes = {}
    for module, adapter in effective.items():
        product = LowRank(adapter.left.double(), adapter.right.double())
        if module in residual:
            inside = residual[module].double()
            product = LowRank(
                torch.cat([product.left, inside], dim=1),
                torch.cat([product.right, torch.eye(inside.shape[1], dtype=torch.float64)]),
            )
        changes[module] = recompress(product, ROUNDING)
    return changes


PATTERNS: Final = (
    "target_modules", "feedforward_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern",
    "modules_to_save",
)  # fmt: skip
"""Settings of an adapter that the library matches with names of layers; it treats some as regular expressions."""


def refuse_patterns(config: Mapping[str, Any]) -> None:
    """Refuse regular expressions in an adapter's settings, because matching a hostile one can take years.

    Raises:
        RunError: names the setting; fedpeft writes only names of layers.
    """
    for name in PATTERNS:
        given = config.get(name) or ()
        for word in [given] if isinstance(given, str) else given:
            if not isinstance(word, str) or not re.fullmatch(r"[\w.-]+", word):
                raise RunError(f"FP5251 {name} in {ADAPTER_CONFIG} must be names of layers, got {word!r:.80}")


def load(folder: Path, task: Task, base: nn.Module, classes: int) -> FederatedModel:
    """Load the finished model from its files onto a `base` in fp32, which is changed in place.

    Raises:
        RunError: `folder` contains neither an adapter nor a model, or its files can't be read.
    """
    try:
        return _load(folder, task, base, classes)
    except FedpeftError:
        raise
    except Exception as error:  # peft, transformers and safetensors raise many types on damaged files
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(f"FP5158 the adapter or model in {folder} can't be read: {reason}") from error


def _load(folder: Path, task: Task, base: nn.Module, classes: int) -> FederatedModel:
    from peft import PeftModel

    files = folder / "adapter"
    if (files / OWN_METHOD).is_file():
        from fedpeft.parts.families import PEFT_METHODS

        model = task.model(base, classes)
        method = PEFT_METHODS.build(read_json(files / OWN_METHOD)["method"])
        tensors = load_file(check_regular_file(files / OWN_TENSORS))
        if isinstance(method, SavesFrozen):
            method.attach_saved(model, tensors)
            frozen = method.frozen(model)
        else:
            method.attach(model, "fp32")
            frozen = {}
        put(model, {name: tensor for name, tensor in tensors.items() if name not in frozen})
    elif files.is_dir():
        model = task.model(base, classes)
        check_regular_file(files / "adapter_model.safetensors")
        refuse_patterns(read_json(files / ADAPTER_CONFIG))
        model.base = PeftModel.from_pretrained(base, str(files))
    elif (folder / "model").is_dir():
        model = task.model(task.base(folder / "model", torch.float32), classes)
        files = folder / "model"
    else:
        raise RunError(f"FP5159 {folder} holds no finished run: neither adapter/ nor model/ is there")
    if classes or (files / HEAD).is_file():
        model.load_state_dict(load_file(check_regular_file(files / HEAD)), strict=False)
    return model.eval().requires_grad_(False)

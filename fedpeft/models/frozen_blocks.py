"""The activation cache: outputs of the frozen part below the lowest adapter, computed once and stored on disk.

With adapters in the uppermost blocks only, or none, everything below them is a fixed function of an example. The cache
stores its output, the hidden states that enter the lowest adapted block. Training reads them back instead of computing
them again in every step. The cache also stores the frozen model's pooled features, for the linear probe and the head
start. Examples are computed in tiles that depend only on their lengths, so stored values do not depend on the caller.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, float64, nn

from fedpeft.data.examples import Batch, Examples, PairRows, batch_by_length
from fedpeft.errors import AssetError, ModelError
from fedpeft.machine import activation_cache_limit, files
from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.layers import find_blocks, get_reader

TILE = 32
"""Number of examples that are computed together."""


class _GivenEmbeddings(nn.Module):
    """A replacement for a model's embeddings that returns the given hidden states unchanged."""

    def forward(self, *given: Any, **named: Any) -> Tensor:
        tensors = (t for t in (*given, *named.values()) if isinstance(t, Tensor))
        return next(t for t in tensors if t.is_floating_point())


class _SkippedBlock(nn.Module):
    """A replacement for a block that returns hidden states unchanged, so that the blocks above keep their indices."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


def cut_below(base: nn.Module, depth: int) -> nn.Module:
    """Return `base` without embeddings and the blocks below `depth`; it reads hidden states as `inputs_embeds`.

    The remaining layers are shared with `base`, which is not changed.
    """
    path, stack = find_blocks(base)
    top = _copy_module(base)
    parent = top
    *parents, last = path.split(".")
    for name in parents:
        child = _copy_module(parent.get_submodule(name))
        setattr(parent, name, child)
        parent = child
    setattr(parent, last, nn.ModuleList([_SkippedBlock() for _ in range(depth)] + list(stack)[depth:]))
    if isinstance(getattr(top, "embeddings", None), nn.Module):
        top.embeddings = _GivenEmbeddings()
    return top


AGREEMENT = {torch.bfloat16: 0.02}
"""Largest allowed difference, relative to a token's largest output, of a model that starts from hidden states."""


def can_start_at(base: nn.Module, depth: int) -> bool:
    """Return whether `cut_below(base, depth)`, fed the input of block `depth`, computes what `base` computes.

    It is tested on two made-up examples. A `depth` equal to the number of blocks stands for the last block's output.
    The result is False for models that change hidden states on their way in (GPT-2 adds positions) or accept none.
    """
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]], device=next(base.parameters()).device)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], device=ids.device)
    training = base.training
    base.eval()
    try:
        hidden, whole = _run_to_depth(base, {"input_ids": ids, "attention_mask": mask}, depth)
        with torch.inference_mode():
            part = get_reader(cut_below(base, depth))(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, StopIteration):
        return False
    finally:
        base.train(training)
    seen = mask.bool()
    off, largest = ((t[seen].abs().amax(-1)) for t in (part - whole, whole))
    return bool((off <= AGREEMENT.get(whole.dtype, 1e-4) * largest).all())


def _run_to_depth(base: nn.Module, inputs: Batch, depth: int) -> tuple[Tensor | None, Tensor]:
    """Return the input of block `depth`, or the last block's output (None for depth 0), and the last hidden states."""
    captured: list[Tensor] = []

    def capture(hidden: Tensor, kwargs: dict[str, Any]) -> None:
        packing = kwargs.get("packing")
        captured.append(hidden if packing is None else packing.pad(hidden))

    def capture_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        capture(args[0] if args else kwargs["hidden_states"], kwargs)

    def capture_output(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        capture(output[0] if isinstance(output, tuple) else output, kwargs)

    with torch.inference_mode():
        if not depth:
            return None, get_reader(base)(**inputs).last_hidden_state
        stack = find_blocks(base)[1]
        if depth < len(stack):
            hook = stack[depth].register_forward_pre_hook(capture_input, with_kwargs=True)
        else:
            hook = stack[-1].register_forward_hook(capture_output, with_kwargs=True)
        try:
            last = get_reader(base)(**inputs).last_hidden_state
        finally:
            hook.remove()
    return captured[0], last


def _copy_module(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    for name, hooks in vars(module).items():
        if name.startswith("_forward_") and isinstance(hooks, dict):
            setattr(twin, name, hooks.copy())  # the copy gets its own hooks
    return twin


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


@dataclass(frozen=True)
class ActivationCache:
    """Files with outputs of the frozen model for all examples: pooled features, and hidden states that enter a block.

    The files are read with `pread` instead of mapped. So they stay in the system's page cache and are neither counted
    nor copied in every process.

    Attributes:
        folder: contains `features.bin` (rows, width) in fp32 (fp64 for an fp64 base), `hidden.bin` (tokens, width) in
            the
            base's precision if depth > 0, and `tiles.done` (one byte a tile).
        examples: the examples.
        depth: index of the block whose input is stored; the number of blocks: the last one's output; 0: only features.
        width: hidden size.
        dtype: dtype of the base.
    """

    folder: Path
    examples: Examples
    depth: int
    width: int
    dtype: torch.dtype

    @cached_property
    def tiles(self) -> list[np.ndarray]:
        """Indices of the examples of each tile."""
        return batch_by_length(self.examples.lengths, TILE)

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.examples.lengths)])

    def _get_length(self, row: int) -> int:
        """Return the number of tokens of one example; `examples.lengths` would count all of them anew."""
        return int(self._offsets[row + 1] - self._offsets[row])

    @property
    def _feature_dtype(self) -> torch.dtype:
        return get_wide_dtype(self.dtype)

    def find_missing_tiles(self) -> list[int]:
        """Return the tiles that are not computed yet; create the files if they are missing.

        Raises:
            AssetError: the disk, or the limit of the cache (`fedpeft.machine.activation_cache_limit`), has no room for
                the
                files, or they are another user's.
        """
        done = self.folder / "tiles.done"
        sizes = {"features.bin": len(self.examples) * self._count_bytes(self._feature_dtype)}
        sizes["hidden.bin"] = int(self._offsets[-1]) * self._count_bytes(self.dtype) if self.depth else 0
        try:
            with FileLock(f"{self.folder}.lock"):  # parallel runs must not empty each other's files
                activation_cache_limit.hold(self.folder)
                if not done.exists() or done.stat().st_size != len(self.tiles):
                    activation_cache_limit.make_room(self.folder, sum(sizes.values()))
                    self._make_files(sizes)
                    done.write_bytes(bytes(len(self.tiles)))
        except PermissionError as error:
            raise AssetError(
                f"FP2037 you may not write {error.filename or self.folder}, where the activation cache keeps these "
                "examples; set FEDPEFT_CACHE to a directory of your own"
            ) from error
        except OSError as error:
            raise AssetError(
                f"FP2038 the activation cache needs {sum(sizes.values()) / 1e6:.1f} MB in {self.folder} "
                f"({error.strerror}); free some space or set FEDPEFT_CACHE to another disk"
            ) from error
        return [i for i, flag in enumerate(done.read_bytes()) if not flag]

    def has(self, tile: int) -> bool:
        """Return whether a tile is computed, perhaps by another process after `find_missing_tiles`."""
        with open(self.folder / "tiles.done", "rb") as done:
            done.seek(tile)
            return done.read(1) == b"\x01"

    def _make_files(self, sizes: Mapping[str, int]) -> None:
        files.make_private_folder(self.folder)  # activations reveal the examples
        try:
            for name, size in sizes.items():
                with open(self.folder / name, "wb") as file:
                    if size:
                        files.reserve(file.fileno(), size)
        except OSError:
            for name in sizes:  # give the space back
                (self.folder / name).unlink(missing_ok=True)
            raise

    def _count_bytes(self, dtype: torch.dtype) -> int:
        return self.width * dtype.itemsize

    @cached_property
    def _files(self) -> dict[str, int]:
        activation_cache_limit.hold(self.folder)
        opened = {name: os.open(self.folder / f"{name}.bin", os.O_RDWR) for name in ("features", "hidden")}
        weakref.finalize(self, _close, tuple(opened.values()))  # open files of a removed store occupy the disk
        return opened

    def fill(self, tile: int, base: nn.Module) -> None:
        """Compute one tile with the frozen `base`, write it to the disk, and mark it done.

        Raises:
            ModelError: the features are not finite, or have another width than the store's.
        """
        rows = self.tiles[tile]
        batch = self.examples.batch(rows)
        device = next(base.parameters()).device
        inputs = {name: t.to(device) for name, t in batch.items() if name != "labels"}
        hidden, last = _run_to_depth(base, inputs, self.depth)
        features = pool(last, inputs.get("attention_mask")).to(self._feature_dtype).cpu()
        if features.shape[1] != self.width or not features.isfinite().all():
            fault = "NaN or infinite" if features.shape[1] == self.width else f"{features.shape[1]} wide"
            raise ModelError(
                f"FP4022 features of {type(base).__name__} are {fault}, and must be finite and {self.width} wide, the "
                "width in its config.json"
            )
        hidden = None if hidden is None else hidden.cpu()  # one copy for all examples
        for i, row in enumerate(rows):
            self._write("features", features[i], int(row) * self._count_bytes(self._feature_dtype))
            if hidden is not None:
                length = self._get_length(int(row))
                self._write("hidden", hidden[i, :length], int(self._offsets[row]) * self._count_bytes(self.dtype))
        self._mark(tile)

    def _mark(self, tile: int) -> None:
        """Mark a tile done after its data has reached the disk."""
        for file in self._files.values():
            files.flush_data(file)
        with open(self.folder / "tiles.done", "r+b") as done:
            done.seek(tile)
            done.write(b"\x01")

    def _find_places(self, tile: int) -> list[tuple[str, int, int]]:
        """Return file, position and number of bytes of each piece of a tile."""
        features, hidden = self._count_bytes(self._feature_dtype), self._count_bytes(self.dtype) if self.depth else 0
        rows = [int(row) for row in self.tiles[tile]]
        places = [("features", row * features, features) for row in rows]
        return places + [
            ("hidden", int(self._offsets[r]) * hidden, self._get_length(r) * hidden) for r in rows if hidden
        ]

    def read(self, tile: int) -> bytes:
        """Return a tile's bytes for another machine's store of the same name."""
        return b"".join(os.pread(self._files[name], size, at) for name, at, size in self._find_places(tile))

    def put(self, tile: int, data: bytes) -> bool:
        """Store a tile that another machine has read; return False, and store nothing, if its size is wrong."""
        places, start = self._find_places(tile), 0
        if len(data) != sum(size for _, _, size in places):
            return False
        for name, at, size in places:
            os.pwrite(self._files[name], data[start : start + size], at)
            start += size
        self._mark(tile)
        return True

    def _write(self, name: str, values: Tensor, position: int) -> None:
        os.pwrite(self._files[name], values.contiguous().view(torch.uint8).numpy().data, position)

    def read_features(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Return pooled features of `rows`, (rows, width)."""
        features = torch.empty(len(rows), self.width, dtype=self._feature_dtype)
        for target, row in zip(features, rows, strict=True):
            buffer = target.view(torch.uint8).numpy().data
            os.preadv(self._files["features"], [buffer], int(row) * self._count_bytes(self._feature_dtype))
        return features

    def read_hidden(self, rows: Sequence[int] | np.ndarray, longest: int) -> Tensor:
        """Return hidden states of `rows`, padded with zeros: (rows, longest, width)."""
        hidden = torch.zeros(len(rows), longest, self.width, dtype=self.dtype)
        for target, row in zip(hidden, rows, strict=True):
            length = self._get_length(int(row))
            buffer = target[:length].view(torch.uint8).numpy().reshape(-1).data
            os.preadv(self._files["hidden"], [buffer], int(self._offsets[row]) * self._count_bytes(self.dtype))
        return hidden


@dataclass(frozen=True)
class StoredRows:
    """Examples whose batches contain stored activations instead of tokens."""

    store: ActivationCache

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.store.examples)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per example, (rows,), so that batches contain the same examples as without the store."""
        return self.store.examples.lengths


@dataclass(frozen=True)
class HiddenRows(StoredRows):
    """Examples that start at the lowest adapted block: batches contain `inputs_embeds` instead of token ids."""

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Return inputs_embeds (B, T, d), attention_mask (B, T) and labels."""
        batch = self.store.examples.batch(rows)
        longest = batch.pop("input_ids").shape[1]
        return {"inputs_embeds": self.store.read_hidden(rows, longest), **batch}


def get_sequences(examples: Examples) -> Examples:
    """Return examples of one sequence each; for pairs, both sides one after the other."""
    return examples.answers if isinstance(examples, PairRows) else examples


def start_from_store(examples: Examples, store: ActivationCache) -> Examples:
    """Return `examples` that start at the lowest adapted block, with the stored activations of `get_sequences`."""
    hidden = HiddenRows(store)
    return PairRows(hidden, examples.cut) if isinstance(examples, PairRows) else hidden


def pool(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Average hidden states (B, T, d) over the real tokens of the mask (B, T), as (B, d) in at least fp32."""
    hidden = hidden if hidden.dtype == float64 else hidden.float()
    if attention_mask is None:
        return hidden.mean(1)
    mask = attention_mask[..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)

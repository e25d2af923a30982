"""Assets for a machine without a network: an encoder's real weights in bf16, and real examples."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from fedpeft.data.rows import load_dataset
from fedpeft.errors import AssetError
from fedpeft.machine.files import raise_write_errors
from fedpeft.models.base_model import resolve_model

MODEL, ROWS = "encoder", "rows.jsonl.gz"

MOST_BYTES = 60_000_000

TEXTS, LETTERS = 4_000, 800
"""Number of examples, and characters of each: more than 128 tokens."""


def collect(folder: Path, model: str = "minilm", dataset: str = "20newsgroups") -> int:
    """Fill `folder`; returns its bytes.

    Raises:
        AssetError: model or rows can't be fetched, or are larger than is to be carried.
    """
    source = resolve_model(model)
    target = folder / MODEL
    with raise_write_errors(folder):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in source.iterdir():
            if file.suffix in (".json", ".txt"):
                shutil.copyfile(file, target / file.name)
        weights = load_file(source / "model.safetensors")
        halved = {n: w.to(torch.bfloat16) if w.is_floating_point() else w for n, w in weights.items()}
        save_file(halved, target / "model.safetensors", metadata={"format": "pt"})
        _write_rows(folder / ROWS, dataset)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise AssetError(f"{folder} has {size / 1e6:.0f} MB, and {MOST_BYTES / 1e6:.0f} are the most: empty it first")
    return size


def _write_rows(file: Path, dataset: str) -> None:
    """Write a fixed random sample of the training examples."""
    data = load_dataset(dataset)
    rows, names = data.train, data.label_names
    assert rows.labels is not None
    assert names is not None
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:TEXTS])
    with gzip.open(file, "wt", encoding="utf-8") as out:
        for i in chosen:
            out.write(json.dumps({"text": str(rows.inputs[i])[:LETTERS], "label": names[rows.labels[i]]}) + "\n")


def check_folder(folder: Path) -> Path:
    """Return the absolute path of a complete assets folder.

    Raises:
        AssetError: a file is missing.
    """
    for name in (f"{MODEL}/config.json", f"{MODEL}/model.safetensors", ROWS):
        if not (folder / name).is_file():
            raise AssetError(
                f"{folder} lacks {name}; fill it where there is a network: "
                f"python -m experiments.gpu --collect --assets {folder}"
            )
    return folder.absolute()

"""Two towers: a vision transformer and a text encoder as one base for pairs of images and texts.

towers                                      DINOv2 small and MiniLM, both 384 wide towers(image=dinov2_small,
text=minilm)     any two models that classification reads

Both have their published weights, and were not trained together. The task `towers` trains that, as LiT does with a
locked tower (Zhai et al., arXiv 2111.07991).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedpeft.data.cached_rows import TOKENIZER_FILES
from fedpeft.errors import ModelError
from fedpeft.machine import cache
from fedpeft.models.base_model import resolve_model
from fedpeft.models.two_towers import TOWERS
from fedpeft.parts import setting

FILES = ("*.safetensors", "config.json")


@dataclass(frozen=True)
class Towers:
    """An encoder of images and one of texts."""

    origin: ClassVar[str] = ""
    license: ClassVar[str] = ""

    image: str = setting("dinov2_small", "the vision transformer, as --model takes it")
    text: str = setting("minilm", "the text encoder, as --model takes it")

    def resolve(self) -> Path:
        """Return a folder with the towers in image/ and text/, the tokenizer, and a config.json of both.

        Raises:
            AssetError: a tower can't be fetched.
            ModelError: the towers are not an encoder of images and one of texts.
        """
        folders = {tower: resolve_model(getattr(self, tower)) for tower in TOWERS}
        hashes = {tower: cache.hash_files(folder, (*FILES, *TOKENIZER_FILES)) for tower, folder in folders.items()}
        name = f"towers-{cache.compute_key(towers=hashes)}"
        return cache.get_cached_folder(name, lambda target: _fill(target, folders, hashes))


def _fill(target: Path, folders: dict[str, Path], hashes: dict[str, str]) -> None:
    configs = {tower: json.loads((folder / "config.json").read_text("utf-8")) for tower, folder in folders.items()}
    if "patch_size" not in configs["image"] or "vocab_size" not in configs["text"]:
        raise ModelError(
            f"FP4037 towers needs an encoder of images and one of texts, and got {folders['image']} and "
            f"{folders['text']}; use image=dinov2_small and text=minilm"
        )
    for tower, folder in folders.items():
        (target / tower).mkdir()
        for file in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
            shutil.copyfile(file, target / tower / file.name)
    for file in sorted({path for pattern in TOKENIZER_FILES for path in folders["text"].glob(pattern)}):
        if file.name != "config.json":
            shutil.copyfile(file, target / file.name)
    both = {
        "model_type": "vision-text-dual-encoder",
        "vision_config": configs["image"],
        "text_config": configs["text"],
        "hidden_size": configs["image"]["hidden_size"],
        "max_position_embeddings": configs["text"].get("max_position_embeddings"),
        "tower_hashes": hashes,  # the cache identifies the weights by them
    }
    (target / "config.json").write_text(json.dumps(both, indent=1) + "\n", encoding="utf-8")


part = Towers

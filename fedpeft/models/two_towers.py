"""Two frozen encoders as one base, and the connector from the features of one to those of the other.

Blocks are counted from the top: `blocks.11` contains the last block of both towers, so that `lora(layers=2)` adapts the
last two blocks of each. A block is one module that is registered there and in its tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.data.examples import Batch
from fedpeft.errors import ModelError
from fedpeft.models import connector
from fedpeft.models.frozen_blocks import pool
from fedpeft.models.layers import find_blocks, unwrap
from fedpeft.models.task import FederatedModel

TOWERS = ("image", "text")

CONNECTORS = (connector.LINEAR, connector.MLP, "none")
"""Types of connectors from image features to text features; none: no connector."""

HELD = "held"
"""Name of the sides that each example of a batch has: bool (B, 2), image and text."""


class TwoTowers(nn.Module):
    """An encoder of images and one of texts, with separate inputs.

    Attributes:
        blocks: the towers' blocks from the top, lowest first; the lowest ones contain only the deeper tower's.
        image: the encoder of images.
        text: the encoder of texts.
        config: configuration of both.
        paths: path of each tower's blocks, and the index of its first block among all.
        base_model_prefix: required by the `peft` library from models that contain others of transformers.
    """

    base_model_prefix = ""

    def __init__(self, image: nn.Module, text: nn.Module, config: Any) -> None:
        """Combine the towers and align their blocks at the top."""
        super().__init__()
        lists = {"image": find_blocks(image), "text": find_blocks(text)}
        stacks = {tower: stack for tower, (_, stack) in lists.items()}
        depth = max(map(len, stacks.values()))
        self.paths = {tower: (path, depth - len(stack)) for tower, (path, stack) in lists.items()}
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {tower: stack[i - depth + len(stack)] for tower, stack in stacks.items() if i - depth + len(stack) >= 0}
            )
            for i in range(depth)
        )
        self.image = image
        self.text = text
        self.config = config
        self.register_load_state_dict_pre_hook(_copy_shared_blocks)  # type: ignore[no-untyped-call]

    def features(self, tower: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Compute the mean of a tower's last hidden states, (B, d), in at least fp32."""
        hidden = getattr(self, tower)(**inputs).last_hidden_state
        return pool(hidden, inputs.get("attention_mask"))


def _copy_shared_blocks(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Copy blocks in a state dictionary to their places in the towers, because files contain one copy of each."""
    paths: dict[str, tuple[str, int]] = module.paths  # type: ignore[assignment]
    for name in [name for name in state if name.startswith(f"{prefix}blocks.")]:
        place, tower, rest = name.removeprefix(f"{prefix}blocks.").split(".", 2)
        path, first = paths[tower]
        state[f"{prefix}{tower}.{path}.{int(place) - first}.{rest}"] = state[name]


class Connector(nn.Module):
    """A map of features (B, in) to (B, out); its weights are drawn from a fixed seed, the same in every run."""

    def __init__(self, kind: str, width: int, out: int, dtype: torch.dtype, device: torch.device) -> None:
        """Create a connector of a `kind` in `CONNECTORS`.

        Raises:
            ModelError: there is no connector, and the towers differ in width.
        """
        super().__init__()
        if kind == "none" and width != out:
            raise ModelError(
                f"FP4049 the towers are {width} and {out} wide, and without a connector their features can't be "
                "compared; use connector=linear"
            )
        self.connector = nn.Identity() if kind == "none" else connector.create_connector(kind, width, out)
        self.to(device, dtype)
        connector.draw_weights(self)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        mapped: Tensor = self.connector(features)
        return mapped


class TowersModel(FederatedModel):
    """A model that returns both sides of each example; a missing side is replaced by a second view of the other."""

    pairs = True
    peft_task = "FEATURE_EXTRACTION"

    def __init__(self, base: nn.Module, head: Connector) -> None:
        """Hold the towers and the connector."""
        super().__init__()
        self.base = base
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """Compute image and text features, (B, 2, d)."""
        image = {"pixel_values": batch["pixel_values"]}
        text = {name: batch[name] for name in ("input_ids", "attention_mask")}
        held = batch[HELD]
        towers = (("image", image, augment_images), ("text", text, augment_texts))
        sides: list[Tensor | None] = [None, None]
        rows = len(held)
        for side, (tower, inputs, view) in enumerate(towers):
            present, alone = held[:, side], held[:, side] & ~held[:, 1 - side]
            if not present.any():
                continue
            selected = {name: tensor[present] for name, tensor in inputs.items()}
            if alone.any():
                viewed = view({name: tensor[alone] for name, tensor in inputs.items()})
                selected = {name: torch.cat([tensor, viewed[name]]) for name, tensor in selected.items()}
            features = self._compute_features(tower, selected)
            count = int(present.sum())
            for place, which, part in ((side, present, features[:count]), (1 - side, alone, features[count:])):
                if which.any():
                    whole = features.new_zeros(rows, features.shape[1]) if sides[place] is None else sides[place]
                    sides[place] = whole.index_put((which.nonzero()[:, 0],), part)  # type: ignore[union-attr]
        image_side, text_side = sides
        assert image_side is not None, "each example has at least one side"
        assert text_side is not None, "each example has at least one side"
        both = torch.stack([image_side, text_side], 1)
        if torch.is_grad_enabled() and not both.requires_grad:  # only texts, and only the connector is trained
            both = both + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return both

    def _compute_features(self, tower: str, inputs: Batch) -> Tensor:
        base: TwoTowers = unwrap(self.base)
        features = base.features(tower, inputs)
        return self.head(features) if tower == "image" else features


SHIFT = 3
"""Shift of an image's second view, in pixels of an image of 56; it scales with the image and is at least one."""


def augment_images(inputs: Batch) -> Batch:
    """Shift the images down and right and make them paler; mirrors would exchange left and right."""
    pixels = inputs["pixel_values"]
    step = max(1, SHIFT * pixels.shape[-1] // 56)
    return {"pixel_values": 0.8 * torch.roll(pixels, (step, step), (-2, -1))}


def augment_texts(inputs: Batch) -> Batch:
    """Mask every third token except the first; texts of three or fewer tokens stay as they are."""
    mask = inputs["attention_mask"].clone()
    longer = mask.sum(1) > 3
    mask[:, 2::3] = torch.where(longer[:, None], 0, mask[:, 2::3])
    return {"input_ids": inputs["input_ids"], "attention_mask": mask}


def find_tower_folders(directory: Path) -> dict[str, Path]:
    """Return the folders of the towers in a model's folder.

    Raises:
        ModelError: there are none.
    """
    folders = {tower: directory / tower for tower in TOWERS}
    if not all((folder / "config.json").is_file() for folder in folders.values()):
        raise ModelError(
            f"FP4050 the model in {directory} has no two towers; use --model towers, or towers(image=..., text=...)"
        )
    return folders

"""Two frozen encoders as one base, and the connector that leads from the one's features to the other's.

Blocks are counted from the top: `blocks.11` holds the last block of both towers, so that `lora(layers=2)` adapts the
last two of each. A block stands there and in its tower, as one module.
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
"""What leads from image features to text features; none: nothing."""

HELD = "held"
"""In a batch, which sides a row has: bool (B, 2), image and text."""


class TwoTowers(nn.Module):
    """An encoder of images and one of texts; what they read is not mixed.

    Attributes:
        blocks: the towers' blocks from the top, lowest first; below the lower tower's first, one tower's alone.
        image, text: the towers.
        config: of both.
        paths: where each tower has its blocks, and the place of its first among all.
        base_model_prefix: what the `peft` library wants of models that hold others of transformers'.
    """

    base_model_prefix = ""

    def __init__(self, image: nn.Module, text: nn.Module, config: Any) -> None:
        super().__init__()
        found = {"image": find_blocks(image), "text": find_blocks(text)}
        stacks = {tower: stack for tower, (_, stack) in found.items()}
        depth = max(map(len, stacks.values()))
        self.paths = {tower: (path, depth - len(stack)) for tower, (path, stack) in found.items()}
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
        """The mean of a tower's last hidden states, (B, d), in at least fp32."""
        hidden = getattr(self, tower)(**inputs).last_hidden_state
        return pool(hidden, inputs.get("attention_mask"))


def _copy_shared_blocks(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """What a file has of a block stands in its tower, too: files hold one copy."""
    paths: dict[str, tuple[str, int]] = module.paths  # type: ignore[assignment]
    for name in [name for name in state if name.startswith(f"{prefix}blocks.")]:
        place, tower, rest = name.removeprefix(f"{prefix}blocks.").split(".", 2)
        path, first = paths[tower]
        state[f"{prefix}{tower}.{path}.{int(place) - first}.{rest}"] = state[name]


class Connector(nn.Module):
    """From features (B, in) to (B, out); its weights are drawn from a generator of their own, the same in every run."""

    def __init__(self, kind: str, width: int, out: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        if kind == "none" and width != out:
            raise ModelError(
                f"FP4049 the towers are {width} and {out} wide, and without a connector their features can't be "
                "compared; take connector=linear"
            )
        self.connector = nn.Identity() if kind == "none" else connector.create_connector(kind, width, out)
        self.to(device, dtype)
        connector.draw(self)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        found: Tensor = self.connector(features)
        return found


class TowersModel(FederatedModel):
    """Both sides of each row; what a row lacks is taken by a second view of what it has."""

    pairs = True
    peft_task = "FEATURE_EXTRACTION"

    def __init__(self, base: nn.Module, head: Connector) -> None:
        super().__init__()
        self.base = base
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """Image and text features, (B, 2, d)."""
        image = {"pixel_values": batch["pixel_values"]}
        text = {name: batch[name] for name in ("input_ids", "attention_mask")}
        held = batch[HELD]
        towers = (("image", image, augment_images), ("text", text, augment_texts))
        found: list[Tensor | None] = [None, None]
        rows = len(held)
        for side, (tower, inputs, view) in enumerate(towers):
            own, alone = held[:, side], held[:, side] & ~held[:, 1 - side]
            if not own.any():
                continue
            asked = {name: tensor[own] for name, tensor in inputs.items()}
            if alone.any():
                viewed = view({name: tensor[alone] for name, tensor in inputs.items()})
                asked = {name: torch.cat([tensor, viewed[name]]) for name, tensor in asked.items()}
            features = self._compute_features(tower, asked)
            count = int(own.sum())
            for place, which, part in ((side, own, features[:count]), (1 - side, alone, features[count:])):
                if which.any():
                    whole = features.new_zeros(rows, features.shape[1]) if found[place] is None else found[place]
                    found[place] = whole.index_put((which.nonzero()[:, 0],), part)  # type: ignore[union-attr]
        image_side, text_side = found
        assert image_side is not None, "of each row one side at least is there"
        assert text_side is not None, "of each row one side at least is there"
        both = torch.stack([image_side, text_side], 1)
        if torch.is_grad_enabled() and not both.requires_grad:  # texts alone, where the connector alone is trained
            both = both + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return both

    def _compute_features(self, tower: str, inputs: Batch) -> Tensor:
        base: TwoTowers = unwrap(self.base)
        features = base.features(tower, inputs)
        return self.head(features) if tower == "image" else features


SHIFT = 3
"""Pixels of 56 that the second view of an image is moved by; smaller images by as large a share, at least one."""


def augment_images(inputs: Batch) -> Batch:
    """The images moved down and right, and paler. No mirror: it would turn left and right around."""
    pixels = inputs["pixel_values"]
    step = max(1, SHIFT * pixels.shape[-1] // 56)
    return {"pixel_values": 0.8 * torch.roll(pixels, (step, step), (-2, -1))}


def augment_texts(inputs: Batch) -> Batch:
    """The texts without every third token, the first kept; of three or fewer, as they are."""
    mask = inputs["attention_mask"].clone()
    longer = mask.sum(1) > 3
    mask[:, 2::3] = torch.where(longer[:, None], 0, mask[:, 2::3])
    return {"input_ids": inputs["input_ids"], "attention_mask": mask}


def find_tower_folders(directory: Path) -> dict[str, Path]:
    """The folders of the towers in a model's folder.

    Raises:
        ModelError: there are none.
    """
    found = {tower: directory / tower for tower in TOWERS}
    if not all((folder / "config.json").is_file() for folder in found.values()):
        raise ModelError(
            f"FP4050 the model in {directory} has no two towers; take --model towers, or towers(image=..., text=...)"
        )
    return found

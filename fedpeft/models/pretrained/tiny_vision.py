"""A DINOv2 of 60 thousand parameters with seeded random weights, for tests; nothing is fetched.

It has 3 layers, hidden size 48, 4 heads, and patches of 4 x 4 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedpeft.models import model_folder
from fedpeft.parts import setting


@dataclass(frozen=True)
class TinyVision:
    """Random weights of a small vision transformer."""

    origin: ClassVar[str] = ""
    license: ClassVar[str] = ""

    layers: int = setting(3, "number of transformer layers", low=1, high=24)
    seed: int = setting(0, "seed of the weights", low=0)

    def resolve(self) -> Path:
        """Return the folder that `AutoModel` loads; it is written on first use."""
        return model_folder.get_made_folder(f"tiny_vision-{self.layers}-{self.seed}", self._fill)

    def _fill(self, folder: Path) -> None:
        import torch
        from transformers import Dinov2Config, Dinov2Model

        config = Dinov2Config(
            hidden_size=48,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            mlp_ratio=2,
            image_size=16,
            patch_size=4,
            initializer_range=0.15,  # with the usual 0.02 so small a network is nearly constant in its input
            layerscale_value=1.0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Dinov2Model(config)
        model_folder.save(config, "Dinov2Model", model.state_dict(), folder)


part = TinyVision

"""A vision transformer of somebody's own: all that `docs/own-parts.md` asks for, and no more."""

from __future__ import annotations

from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class OwnVitConfig(PretrainedConfig):
    model_type = "own_vit"

    def __init__(self, hidden_size=16, patch_size=4, blocks=2, num_channels=3, **more):
        super().__init__(**more)
        self.hidden_size, self.patch_size, self.blocks, self.num_channels = (
            hidden_size,
            patch_size,
            blocks,
            num_channels,
        )


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden):
        return hidden + self.down(self.up(self.norm(hidden)).tanh() + hidden.mean(1, keepdim=True))


class OwnVit(PreTrainedModel):
    config_class = OwnVitConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        size = config.patch_size
        self.patches = nn.Conv2d(config.num_channels, config.hidden_size, size, size)
        self.steps = nn.ModuleList(Block(config.hidden_size) for _ in range(config.blocks))
        self.last = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(self, pixel_values):
        hidden = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for step in self.steps:
            hidden = step(hidden)
        return BaseModelOutput(last_hidden_state=self.last(hidden))


AutoConfig.register("own_vit", OwnVitConfig, exist_ok=True)
AutoModel.register(OwnVitConfig, OwnVit, exist_ok=True)

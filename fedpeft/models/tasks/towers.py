"""Images and their texts: two frozen towers learn a common space.

towers                                         SigLIP's pairwise loss, a linear connector from images to texts
towers(connector=mlp)                          a connector with a hidden layer towers(connector=none)
no connector: only the adapter is trained

`--peft linear_probe` trains the connector alone; other methods also train the last blocks of both towers. The pairs of
a batch are those of one client. Pairs across clients are missing, so results depend on the batch size.

A client whose examples have one side only has no pairs. It trains its own tower, and with images the connector. Two
views of an example shall be nearer than other examples are. This is contrastive learning without labels (SimCLR, Chen
et al., arXiv 2002.05709; for texts, Gao et al., arXiv 2104.08821). The other tower stays as it was received.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from fedpeft.data.examples import CaptionedRows, Examples, make_up_batch
from fedpeft.data.images import convert_images
from fedpeft.data.images_with_texts import find_held_sides
from fedpeft.data.model_config import load_model_config
from fedpeft.data.rows import Rows
from fedpeft.data.tokens import tokenize_texts
from fedpeft.errors import ConfigError, DataError
from fedpeft.models import encoders
from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.layers import unwrap
from fedpeft.models.loading import load_base
from fedpeft.models.pair_task import PairTask
from fedpeft.models.task import FederatedModel, Say, ignore_message
from fedpeft.models.tasks.classification import compute_hidden_states
from fedpeft.models.two_towers import CONNECTORS, HELD, Connector, TowersModel, TwoTowers, find_tower_folders
from fedpeft.parts import setting


@dataclass(frozen=True)
class Towers(PairTask):
    """Prediction of the text that belongs to an image."""

    batched: ClassVar[bool] = False

    loss: str = setting("sigmoid", "infonce, or sigmoid: SigLIP's", choices=("infonce", "sigmoid"))
    connector: str = setting("linear", "connector from image features to text features", choices=CONNECTORS)

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Convert images to pixels and texts to token ids; an example that lacks a side is a pair of its own.

        Raises:
            DataError: the examples are not images with texts, or one has neither.
            ModelError: the model does not have two towers.
        """
        if not isinstance(rows.inputs, np.ndarray) or rows.texts is None:
            raise DataError(
                "FP3173 towers needs images with texts; use scenes, fashion_texts or file(path=FOLDER, task=towers)"
            )
        folders = find_tower_folders(model_directory)
        images = rows.inputs
        held = find_held_sides(images, rows.texts)
        if not held.any(1).all():
            raise DataError(
                f"FP3174 {int((~held.any(1)).sum())} examples have neither an image nor a text; remove them"
            )
        first = {text: i for i, text in reversed(list(enumerate(rows.texts)))}  # equal texts are not negatives
        groups = np.array([first[text] if text else i for i, text in enumerate(rows.texts)], np.int64)
        labels = groups if rows.labels is None else np.asarray(rows.labels, dtype=np.int64)
        labels = np.where(held.all(1), labels, -1 - groups)
        pixels, tokens = convert_images(images, folders["image"])
        texts = tokenize_texts(list(rows.texts), labels, model_directory, max_tokens)
        return CaptionedRows(pixels, texts, held, tokens)

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """Load both encoders (see `fedpeft.models.encoders`)."""
        image, text = (
            load_base(encoders.from_pretrained, folder, dtype, compute_hidden_states, say, **options)
            for folder in find_tower_folders(model_directory).values()
        )
        return TwoTowers(image, text, load_model_config(model_directory))

    def model(self, base: nn.Module, classes: int | None) -> TowersModel:
        """Return the towers with a connector."""
        assert isinstance(base, TwoTowers)
        parameter = next(base.parameters())
        dtype = get_wide_dtype(parameter.dtype)
        width, out = (int(tower.config.hidden_size) for tower in (base.image, base.text))  # type: ignore[union-attr, arg-type]
        return TowersModel(base, Connector(self.connector, width, out, dtype, parameter.device))

    def check(self, model: FederatedModel) -> None:
        """Refuse a model that trains nothing, or tensors that neither tower reads.

        Raises:
            ConfigError: the model does.
        """
        super().check(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise ConfigError("FP1221 nothing is trained; set connector=linear, or use --peft lora")
        inner = unwrap(model.base)
        generator, device = torch.Generator().manual_seed(0), trained[0].device
        batch = {
            n: t for tower in (inner.image, inner.text) for n, t in make_up_batch(tower.config, 2, generator).items()
        }
        batch |= {HELD: torch.ones(2, 2, dtype=torch.bool), "labels": torch.arange(2)[:, None].expand(2, 2)}
        with torch.enable_grad():
            total = self.row_losses(model, {n: t.to(device) for n, t in batch.items()}).sums.sum()
            gradients = torch.autograd.grad(total, trained, allow_unused=True)
        unread = sum(gradient is None for gradient in gradients)
        if unread:
            raise ConfigError(
                f"FP1222 neither tower reads {unread} of {len(trained)} trained tensors; use --peft lora or bottleneck"
            )


part = Towers

"""Captions of images: a connector leads from a frozen vision transformer into a language model.

captions                                       a linear connector, 16 vectors of each image captions(connector=mlp)
a connector with a hidden layer captions(side=2)                               2 x 2 vectors of each image, pooled:
shorter sequences

    row      W f_1 + b, ..., W f_n + b, e(<start>), e(a), e(red), ..., e(<end>)
    loss     of the caption's tokens and of <end>, each from what stands before it

This is LLaVA's form (Liu et al., arXiv 2304.08485): f are the patches' features, e the language model's embeddings.
`--peft linear_probe` trains the connector, and `--peft lora` the connector and LoRA in the language model. With
`--optimizer "adamw(head_rate=0)"` LoRA is trained alone, and the connector stays at its start.

The connector starts in closed form. It is the ridge regression from the mean feature of an image to the mean embedding
of its caption, from sums over all clients' examples (`fedpeft.aggregation.heads.ridge`, scale 1). With `--head zero`,
and for an MLP, it starts from drawn numbers as large as embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.data.examples import Batch, DescribedRows, Examples
from fedpeft.data.images_with_texts import find_held_sides
from fedpeft.data.model_config import load_model_config
from fedpeft.data.rows import Rows
from fedpeft.data.tagged_words import IGNORED
from fedpeft.data.tokens import build_token_rows, get_padding_id, load_tokenizer
from fedpeft.errors import ConfigError, DataError
from fedpeft.models import connector
from fedpeft.models.dtypes import get_wide_dtype
from fedpeft.models.patch_features import SIDES, compute_patch_features
from fedpeft.models.task import FederatedModel, Say, ignore_message
from fedpeft.models.tasks.causal_lm import LanguageModel, TokenTask
from fedpeft.models.token_losses import find_language_model
from fedpeft.models.two_towers import find_tower_folders
from fedpeft.parts import setting


class Captioner(LanguageModel):
    """A language model that reads an image's vectors, through a connector, before a text."""

    def __init__(self, base: nn.Module, head: nn.Module) -> None:
        """Hold the language model and the connector, `head`."""
        super().__init__(base)
        self.head = head

    def select_inputs(self, batch: Batch) -> Batch:
        """Return embeddings of image and text, (B, N + T, d), for patches (B, N, width) and input_ids (B, T)."""
        image, text = self.project_patches(batch["patches"]), self.embed_tokens(batch["input_ids"])
        before = batch["attention_mask"].new_ones(image.shape[:2])
        mask = torch.cat([before, batch["attention_mask"]], 1)
        return {"inputs_embeds": torch.cat([image.to(text.dtype), text], 1), "attention_mask": mask}

    def project_patches(self, patches: Tensor) -> Tensor:
        """Map image features (B, N, width) to the language model's input, (B, N, d)."""
        projected: Tensor = self.head(patches.to(next(self.head.parameters()).dtype))
        return projected

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return the language model's embeddings of tokens (B, T), as (B, T, d)."""
        inner: Any = find_language_model(self.base)
        embedded: Tensor = inner.get_input_embeddings()(ids)
        return embedded


@dataclass(frozen=True)
class Captions(TokenTask):
    """Prediction of an image's caption."""

    batched: ClassVar[bool] = False
    per_example: ClassVar[bool] = False
    per_example_missing: ClassVar[str] = "reads an image before each text"
    starts_above: ClassVar[bool] = False  # the connector is below all blocks

    connector: str = setting(
        "linear", "connector from image features to embeddings", choices=(connector.LINEAR, connector.MLP)
    )
    side: int = setting(4, "vectors along a side of an image: 16, 4 or 1 in total", choices=SIDES)

    @property
    def extra_tokens(self) -> int:
        """Number of an image's vectors."""
        return self.side**2

    def tokenise(self, rows: Rows, model_directory: Path, max_tokens: int) -> Examples:
        """Compute the images' features with the frozen encoder, and put captions between a start and an end token.

        Raises:
            DataError: the examples are not images with texts, or one lacks its image or text.
            ModelError: the model does not have two towers.
        """
        if not isinstance(rows.inputs, np.ndarray) or rows.texts is None:
            raise DataError(
                "FP3167 captions needs images with texts; use scenes, fashion_texts or file(path=FOLDER, task=captions)"
            )
        lacking = int((~find_held_sides(rows.inputs, rows.texts).all(1)).sum())
        if lacking:
            raise DataError(
                f"FP3168 {lacking} of {len(rows)} examples lack their image or their text, and captions needs both; "
                "remove images_only and texts_only"
            )
        tokenizer = load_tokenizer(model_directory)
        start, end = get_start_token(tokenizer), int(tokenizer.eos_token_id)
        found = tokenizer(list(rows.texts), add_special_tokens=False)["input_ids"] if len(rows) else []
        whole = [[start, *ids, end] for ids in found]
        texts = build_token_rows([ids[:max_tokens] for ids in whole], get_padding_id(tokenizer), None)
        features = compute_patch_features(rows.inputs, find_tower_folders(model_directory)["image"], self.side)
        return DescribedRows(features, texts, sum(len(ids) > max_tokens for ids in whole))

    def base(self, model_directory: Path, dtype: torch.dtype, say: Say = ignore_message, **options: Any) -> nn.Module:
        """Load the language model with its output layer; the image encoder has been used before."""
        folders = find_tower_folders(model_directory)
        base: Any = super().base(folders["text"], dtype, say, **options)
        base.image_width = int(load_model_config(folders["image"]).hidden_size)
        return base  # type: ignore[no-any-return]

    def model(self, base: nn.Module, classes: int | None) -> Captioner:
        """Return the language model with a connector before it."""
        inner: Any = base
        weight = inner.get_input_embeddings().weight
        dtype = get_wide_dtype(weight.dtype)
        head = connector.create_connector(self.connector, inner.image_width, weight.shape[1])
        head.to(weight.device, dtype)
        connector.draw_weights(head, float(weight.float().square().mean().sqrt()))
        return Captioner(base, head)

    def check(self, model: FederatedModel) -> None:
        """Refuse prompts, and training of all weights.

        Raises:
            ConfigError: names the reason.
        """
        configs: Any = getattr(model.base, "peft_config", {})
        if model.copies != 1 or any(config.is_prompt_learning for config in configs.values()):
            raise ConfigError(
                "FP1215 captions already puts an image before the text, so prompts can't be used; use --peft "
                "lora, or linear_probe"
            )
        if all(parameter.requires_grad for parameter in model.base.parameters()):
            raise ConfigError(
                "FP1216 captions keeps the language model's weights frozen; use --peft lora, or linear_probe"
            )

    def compute_regression_data(self, model: FederatedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute mean features of images (B, width) and mean embeddings of their captions (B, d), at least in fp32."""
        assert isinstance(model, Captioner)
        with torch.no_grad():
            embedded = model.embed_tokens(batch["input_ids"])
        mask = (batch["labels"] != IGNORED)[..., None]
        wide = get_wide_dtype(embedded.dtype)
        targets = (embedded.to(wide) * mask).sum(1) / mask.sum(1)
        return batch["patches"].to(wide).mean(1), targets


def get_start_token(tokenizer: Any) -> int:
    """Return the token before a caption: the tokenizer's start token, or its end token if it has no start token."""
    return int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id)


part = Captions

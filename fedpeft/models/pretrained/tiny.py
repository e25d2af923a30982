"""A BERT encoder of 69 thousand parameters with seeded random weights, for tests; nothing is fetched.

It has 3 layers, hidden size 48, intermediate size 80 (not square, so that a swapped axis shows), 4 heads, and up to 64
tokens. Its tokenizer's vocabulary is that of the generated datasets (`fedpeft.data.made_words`); other words become
[UNK].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedpeft.data.made_words import WORDS, create_word_tokenizer, save_tokenizer
from fedpeft.models import model_folder
from fedpeft.parts import setting

MAX_TOKENS = 64


@dataclass(frozen=True)
class TinyBert:
    """Random weights of a small BERT."""

    origin: ClassVar[str] = ""
    license: ClassVar[str] = ""

    layers: int = setting(3, "number of transformer layers", low=1, high=24)
    seed: int = setting(0, "seed of the weights", low=0)

    def resolve(self) -> Path:
        """Return the folder that `AutoModel` and `AutoTokenizer` load; it is written on first use."""
        return model_folder.get_made_folder(f"tiny-{self.layers}-{self.seed}", self._fill)

    def _fill(self, folder: Path) -> None:
        import torch
        from tokenizers.processors import TemplateProcessing
        from transformers import BertConfig, BertModel

        special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        tokenizer = create_word_tokenizer(special)
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        roles = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        save_tokenizer(tokenizer, folder, MAX_TOKENS, **roles)
        config = BertConfig(
            vocab_size=len(special) + len(WORDS),
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            type_vocab_size=2,
            initializer_range=0.15,  # with the usual 0.02 so small a network is nearly constant in its input
            pad_token_id=0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = BertModel(config)
        model_folder.save(config, "BertModel", model.state_dict(), folder)


part = TinyBert

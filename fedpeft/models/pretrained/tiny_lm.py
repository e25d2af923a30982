"""A Llama-like causal language model of 59 thousand parameters with seeded random weights, for tests.

It has 2 layers, hidden size 48, intermediate size 80, 4 heads that share 2 key-value heads (so k and v are not square),
and up to 64 tokens. Nothing is fetched. Its tokenizer's vocabulary is that of the generated datasets
(`fedpeft.data.made_words`).
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
class TinyLlama:
    """Random weights of a small Llama."""

    origin: ClassVar[str] = ""
    license: ClassVar[str] = ""

    layers: int = setting(2, "number of transformer layers", low=1, high=24)
    seed: int = setting(0, "seed of the weights", low=0)

    def resolve(self) -> Path:
        """Return the folder that `AutoModelForCausalLM` and `AutoTokenizer` load; it is written on first use."""
        return model_folder.get_made_folder(f"tiny_lm-{self.layers}-{self.seed}", self._fill)

    def _fill(self, folder: Path) -> None:
        import torch
        from tokenizers.processors import TemplateProcessing
        from transformers import LlamaConfig, LlamaForCausalLM

        special = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
        tokenizer = create_word_tokenizer(special)
        tokenizer.post_processor = TemplateProcessing(
            single="[BOS] $A", pair="[BOS] $A $B:1", special_tokens=[("[BOS]", 2)]
        )
        save_tokenizer(tokenizer, folder, MAX_TOKENS, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]")
        config = LlamaConfig(
            vocab_size=len(special) + len(WORDS),
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_TOKENS,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = LlamaForCausalLM(config)
        model_folder.save(config, "LlamaForCausalLM", model.state_dict(), folder)


part = TinyLlama

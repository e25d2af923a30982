"""An encoder with a decoder of about 60 thousand parameters with seeded random weights, for tests.

It is a T5 or BART with 2 blocks each, hidden size 48, intermediate size 80, 4 heads, and up to 64 tokens. Nothing is
fetched. Its tokenizer's vocabulary is that of the generated datasets (`fedpeft.data.made_words`). It is untrained:
`--peft full` trains it from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedpeft.data.made_words import WORDS, create_word_tokenizer, save_tokenizer
from fedpeft.models import model_folder
from fedpeft.parts import setting

MAX_TOKENS, WIDTH, INNER, HEADS = 64, 48, 80, 4
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")


@dataclass(frozen=True)
class TinySeq2Seq:
    """Random weights of a small T5 or BART."""

    argument: ClassVar[str] = "kind"
    origin: ClassVar[str] = ""
    license: ClassVar[str] = ""

    kind: str = setting("t5", "architecture", choices=("t5", "bart"))
    layers: int = setting(2, "number of blocks of the encoder, and of the decoder", low=1, high=24)
    seed: int = setting(0, "seed of the weights", low=0)

    def resolve(self) -> Path:
        """Return the folder that `AutoModelForSeq2SeqLM` and `AutoTokenizer` load; it is written on first use."""
        return model_folder.get_made_folder(f"tiny_seq2seq-{self.kind}-{self.layers}-{self.seed}", self._fill)

    def _fill(self, folder: Path) -> None:
        import torch
        import transformers
        from tokenizers.processors import TemplateProcessing

        tokenizer = create_word_tokenizer(SPECIAL)
        begin = "[BOS] " if self.kind == "bart" else ""
        tokenizer.post_processor = TemplateProcessing(
            single=f"{begin}$A [EOS]",
            pair=f"{begin}$A [EOS] $B:1 [EOS]:1",
            special_tokens=[("[BOS]", 2), ("[EOS]", 3)],
        )
        save_tokenizer(tokenizer, folder, MAX_TOKENS, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]")
        name = "T5" if self.kind == "t5" else "Bart"
        config = getattr(transformers, f"{name}Config")(**self._get_sizes())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
        model.save_pretrained(str(folder))

    def _get_sizes(self) -> dict[str, Any]:
        """Return the arguments of the configuration."""
        both = {"vocab_size": len(SPECIAL) + len(WORDS), "d_model": WIDTH, "pad_token_id": 0, "eos_token_id": 3}
        if self.kind == "t5":
            own = {"d_kv": WIDTH // HEADS, "d_ff": INNER, "num_layers": self.layers, "num_heads": HEADS}
            return {**both, **own, "decoder_start_token_id": 0}
        sides = {"layers": self.layers, "attention_heads": HEADS, "ffn_dim": INNER}
        own = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sides.items()}
        ends = {"bos_token_id": 2, "decoder_start_token_id": 3, "forced_eos_token_id": 3}
        return {**both, **own, **ends, "max_position_embeddings": MAX_TOKENS}


part = TinySeq2Seq

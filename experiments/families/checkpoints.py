"""Tiny checkpoints of model families with seeded random weights, as transformers saves them. No download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpeft.models.base_model import resolve_model

WIDTH, INNER, BLOCKS, HEADS = 32, 48, 2, 4
TOKENS = 64

TEXT = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS,
        "max_position_embeddings": TOKENS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
GROUPED = TEXT | {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 16}
PATCHES = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS,
           "image_size": 16, "patch_size": 4}  # fmt: skip
T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": INNER, "num_layers": BLOCKS, "num_heads": HEADS, "pad_token_id": 0,
      "eos_token_id": 3, "decoder_start_token_id": 0}  # fmt: skip
T5_1_1 = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {"d_model": WIDTH, "encoder_layers": BLOCKS, "decoder_layers": BLOCKS, "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS, "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER, "pad_token_id": 0,
        "max_position_embeddings": TOKENS, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3,
        "forced_eos_token_id": 3}  # fmt: skip
GPT2 = {"n_embd": WIDTH, "n_inner": INNER, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": TOKENS,
        "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
TOWERS = {"text_config": TEXT, "vision_config": PATCHES, "projection_dim": 16}
STAGES = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}


@dataclass(frozen=True)
class Family:
    """An architecture: the names of its configuration and its classes in transformers.

    Attributes:
        config: class of the configuration.
        encoder: class for examples with labels; "" if the family has none.
        language: class of the causal language model; "" if it has none.
        answering: class of the encoder-decoder; "" if it has none.
        sizes: sizes of the configuration; the vocabulary is the tokenizer's.
        images: whether it reads images instead of text.
    """

    config: str
    encoder: str = ""
    language: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    images: bool = False
    answering: str = ""

    def of(self, task: str) -> str:
        """Return the class for a task; "" if there is none."""
        return {"causal_lm": self.language, "seq2seq": self.answering}.get(task, self.encoder)

    def save(self, folder: Path, task: str) -> None:
        """Write the checkpoint of its class for a task, and for texts the tokenizer of the made words."""
        import torch
        import transformers

        answers = f"tiny_seq2seq(kind={'bart' if self.language else 't5'})" if task == "seq2seq" else ""
        source = resolve_model(answers or ("tiny_lm" if self.language and not self.images else "tiny"))
        sizes = dict(self.sizes)
        if not self.images:
            vocabulary = transformers.AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
            inner = [sizes["text_config"]] if "text_config" in sizes else [sizes]
            inner[0] = inner[0] | {"vocab_size": len(vocabulary)}
            sizes = sizes | {"text_config": inner[0]} if "text_config" in sizes else inner[0]
            vocabulary.save_pretrained(str(folder))
        config = getattr(transformers, self.config)(**sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, self.of(task))(config)
        model.save_pretrained(str(folder))


def _create_text_family(name: str, **sizes: Any) -> Family:
    """Create an encoder and a causal language model of the same sizes, by default the usual ones."""
    return Family(f"{name}Config", f"{name}Model", f"{name}ForCausalLM", sizes or TEXT)


def _create_encoder_family(name: str, **sizes: Any) -> Family:
    """Create a family that has only an encoder."""
    return Family(f"{name}Config", f"{name}Model", "", sizes or TEXT)


FAMILIES: dict[str, Family] = {
    "BERT": _create_encoder_family("Bert"),
    "RoBERTa": _create_encoder_family("Roberta"),
    "XLM-R": _create_encoder_family("XLMRoberta"),
    "DistilBERT": _create_encoder_family("DistilBert", dim=WIDTH, hidden_dim=INNER, n_layers=BLOCKS, n_heads=HEADS,
                        max_position_embeddings=TOKENS, pad_token_id=0),
    "ELECTRA": _create_encoder_family("Electra", **TEXT, embedding_size=16),
    "MPNet": _create_encoder_family("MPNet"),
    "ModernBERT": _create_encoder_family("ModernBert", **TEXT, cls_token_id=2, sep_token_id=3),
    "DeBERTa": _create_encoder_family("Deberta", **TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "DeBERTa-v2, v3": _create_encoder_family("DebertaV2", **TEXT, relative_attention=True,
                            pos_att_type=["c2p", "p2c"], position_buckets=16),
    "ALBERT": _create_encoder_family("Albert", **TEXT, embedding_size=16),
    "T5": Family("T5Config", "T5ForConditionalGeneration", "", T5, answering="T5ForConditionalGeneration"),
    "T5 1.1, FLAN": Family("T5Config", "T5ForConditionalGeneration", "", T5_1_1,
                           answering="T5ForConditionalGeneration"),
    "BART": Family("BartConfig", "BartModel", "BartForCausalLM", BART, answering="BartForConditionalGeneration"),
    "Pegasus": Family("PegasusConfig", "PegasusModel", "PegasusForCausalLM", BART,
                      answering="PegasusForConditionalGeneration"),
    "Marian": Family("MarianConfig", "MarianModel", "MarianForCausalLM", BART | {"decoder_vocab_size": None},
                     answering="MarianMTModel"),
    "GPT-2": Family("GPT2Config", "GPT2Model", "GPT2LMHeadModel", GPT2),
    "GPT-NeoX (Pythia)": _create_text_family("GPTNeoX"),
    "GPT-J": _create_text_family("GPTJ", **GPT2, rotary_dim=4),
    "OPT": _create_text_family("OPT", **TEXT, ffn_dim=INNER, word_embed_proj_dim=WIDTH),
    "BLOOM": _create_text_family("Bloom", hidden_size=WIDTH, n_layer=BLOCKS, n_head=HEADS, bos_token_id=2,
                                 eos_token_id=3, pad_token_id=0),
    "Falcon": _create_text_family("Falcon", hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=HEADS,
                                  bos_token_id=2, eos_token_id=3),
    "Llama": _create_text_family("Llama", **GROUPED),
    "Mistral": _create_text_family("Mistral", **GROUPED, sliding_window=8),
    "Mixtral": _create_text_family("Mixtral", **GROUPED, num_local_experts=4),
    "Qwen2": _create_text_family("Qwen2", **GROUPED),
    "Qwen3": _create_text_family("Qwen3", **GEMMA),
    "Phi": _create_text_family("Phi", **TEXT, partial_rotary_factor=0.5),
    "Phi-3": _create_text_family("Phi3", **GROUPED),
    "Gemma": _create_text_family("Gemma", **GEMMA),
    "Gemma 2": _create_text_family("Gemma2", **GEMMA, sliding_window=8, query_pre_attn_scalar=16),
    "Gemma 3": Family("Gemma3TextConfig", "Gemma3TextModel", "Gemma3ForCausalLM", GEMMA | {"sliding_window": 8}),
    "ViT": Family("ViTConfig", "ViTModel", "", PATCHES, images=True),
    "DeiT": Family("DeiTConfig", "DeiTModel", "", PATCHES, images=True),
    "BEiT": Family("BeitConfig", "BeitModel", "", PATCHES, images=True),
    "DINOv2": Family("Dinov2Config", "Dinov2Model", "", PATCHES, images=True),
    "CLIP, vision tower": Family("CLIPVisionConfig", "CLIPVisionModel", "", PATCHES, images=True),
    "CLIP, text tower": Family("CLIPTextConfig", "CLIPTextModel", "", TEXT),
    "CLIP, both towers": Family("CLIPConfig", "CLIPModel", "", TOWERS, images=True),
    "SigLIP, both towers": Family("SiglipConfig", "SiglipModel", "", TOWERS, images=True),
    "Swin": Family("SwinConfig", "SwinModel", "", STAGES, images=True),
    "ConvNeXt": Family("ConvNextConfig", "ConvNextModel", "",
                       {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, images=True),
    "ResNet": Family("ResNetConfig", "ResNetModel", "",
                     {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, images=True),
}  # fmt: skip
"""The families by their usual names."""

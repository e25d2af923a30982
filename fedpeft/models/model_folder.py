"""Writing a converted or made model as the folder that transformers' Auto classes load."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.machine.cache import get_cached_folder
from fedpeft.machine.terminal import Console

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


def save(config: PreTrainedConfig, architecture: str, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write config.json and model.safetensors; `weights` has the names that the hub's checkpoints use.

    transformers' own method is not used since it shows progress bars and wants a model object.
    """
    from safetensors.torch import save_file

    config.architectures = [architecture]
    config.save_pretrained(folder)
    contiguous = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def get_made_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """`get_cached_folder` for seeded random weights, which other library versions may draw otherwise."""
    import torch
    import transformers

    versions = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode()).hexdigest()[:8]
    return get_cached_folder(f"{name}-{versions}", fill)


@contextlib.contextmanager
def announce(what: str) -> Iterator[None]:
    """Show one line that says `what` is happening in place of transformers' progress bars and warnings."""
    console = Console(file=sys.stderr)  # bound here, before the rest's stderr goes nowhere
    with console.status(what), contextlib.redirect_stderr(io.StringIO()):
        yield

"""Writing of a converted or created model as a folder that transformers' Auto classes load."""

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
    """Write config.json and model.safetensors; `weights` has the names of the hub's checkpoints.

    transformers' own method shows progress bars and needs a model object, so it is not used.
    """
    from safetensors.torch import save_file

    config.architectures = [architecture]
    config.save_pretrained(folder)
    contiguous = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def get_made_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """Return `get_cached_folder` for seeded random weights, per library version, since versions draw differently."""
    import torch
    import transformers

    versions = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode()).hexdigest()[:8]
    return get_cached_folder(f"{name}-{versions}", fill)


@contextlib.contextmanager
def announce(what: str) -> Iterator[None]:
    """Show one line with `what` is happening instead of transformers' progress bars and warnings."""
    console = Console(file=sys.stderr)  # bound before stderr is redirected
    with console.status(what), contextlib.redirect_stderr(io.StringIO()):
        yield

"""Resolution of the user's name of a base model to a local folder that transformers' Auto classes load."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from fedpeft.data.model_config import load_model_config
from fedpeft.errors import AssetError, ConfigError, is_disk_full
from fedpeft.machine.cache import create_hub_disk_error
from fedpeft.parts import suggest_legal
from fedpeft.parts.families import MODELS
from fedpeft.parts.spec import Spec, parse_spec


class BaseModel(Protocol):
    """A model part: a pretrained model that can be loaded without the hub.

    Attributes:
        origin: the model's name on the hub; "": it is not on the hub.
        license: the license of its weights, as the hub writes it; "": the weights have none.
    """

    origin: ClassVar[str]
    license: ClassVar[str]

    def resolve(self) -> Path:
        """Return a folder with config.json, model.safetensors and, for text, the tokenizer; create it on first use."""
        ...


# No pickled weights, no code, no weights in other frameworks' formats.
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def resolve_model(text: str) -> Path:
    """Return the folder of a model.

    Args:
        text: a model part `name` or `name(key=value)`, an existing local directory, or ORG/NAME on the hub.

    Raises:
        ConfigError: `text` is empty or none of these; the message names the nearest parts.
        AssetError: the model can't be fetched, or its folder has no config.json or no safetensors weights.
    """
    if not text:
        raise ConfigError(
            "FP1205 pairs of texts need an encoder with a decoder such as T5 or BART, and no model part is a "
            "pretrained one; name yours: --model FOLDER, or --model ORG/NAME of the hub"
        )
    if folder := find_local_folder(text):
        return _check_folder(folder)
    if text not in MODELS.names and os.path.isfile(os.path.expanduser(text)):
        raise AssetError(
            f"FP2030 the model {text!r} is a file; name the folder that holds config.json, weights and tokenizer"
        )
    if spec := parse_part(text):
        folder = MODELS.build(spec).resolve()
        _check_config(folder, f"the folder of the model {spec.name} ({folder})")
        return folder
    if not _has_hub_form(text):
        raise AssetError(f"FP2031 there is no model directory {text!r}; name an existing one, or ORG/NAME of the hub")
    return _download_from_hub(text)


def parse_part(text: str) -> Spec | None:
    """Parse the model part that `text` names; None: it looks like a path or a model on the hub.

    Raises:
        ConfigError: it has another form and names no part.
    """
    head = text.partition("(")[0]
    if "/" in head or "\\" in head:
        return None
    if _is_hub_name(head) or (spec := parse_spec(text)).name not in MODELS.names:
        raise ConfigError(
            f"FP1206 unknown model {text!r}; {suggest_legal(head, MODELS.names)}; or a local directory, "
            "or ORG/NAME on the hub, such as google-bert/bert-base-uncased"
        )
    return spec


def check_model(text: str) -> None:
    """Refuse unknown models and illegal settings without fetching anything.

    Raises:
        ConfigError: names what is legal.
    """
    if not find_local_folder(text) and not os.path.isfile(os.path.expanduser(text)) and parse_part(text):
        MODELS.check(text)


def _is_hub_name(text: str) -> bool:
    """Return whether the name is not a part's but looks like a model on the hub, such as bert-base-uncased."""
    return text not in MODELS.names and re.fullmatch(r"\w+([.-]\w+)+", text) is not None


def _has_hub_form(text: str) -> bool:
    """Return whether the text has the form ORG/NAME."""
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")


def find_local_folder(text: str) -> Path | None:
    """Return the existing folder that `text` names, as an absolute path; None: a part, or a model on the hub."""
    name = os.path.expanduser(text)
    if not os.path.isdir(name):  # Path.is_dir raises on names that no file can have
        return None
    folder = Path(name)
    return folder.absolute() if text not in MODELS.names or len(folder.parts) > 1 else None


@dataclass(frozen=True)
class Origin:
    """Public facts about a base model: a name without local paths, and its license; "" is unknown."""

    name: str
    license: str = ""


def get_origin(text: str) -> Origin:
    """Return the origin of the model that `text` names: the hub's name, the part's name, or the last part of a path.

    Raises:
        ConfigError: unknown part.
    """
    if folder := find_local_folder(text):
        return Origin(folder.name)
    if "/" in text.partition("(")[0]:
        return Origin(text if _has_hub_form(text) else Path(text).name)
    part = MODELS.part(parse_spec(text).name)
    return Origin(part.origin or text, part.license)


def _download_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    parts = ", ".join(MODELS.names)
    try:
        return _check_folder(Path(snapshot_download(name, allow_patterns=HUB_FILES)))
    except HFValidationError:
        raise ConfigError(
            f"FP1207 {name!r} is neither a local directory nor a legal name on the hub; name a directory, or ORG/NAME "
            "such as google-bert/bert-base-uncased"
        ) from None
    except GatedRepoError:
        raise AssetError(f"FP2032 the hub asks you to log in and accept the license of {name} first") from None
    except RepositoryNotFoundError:
        raise AssetError(
            f"FP2033 the hub has no model {name} that you can access; models that need no hub: {parts}"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, RuntimeError) as error:  # xet raises RuntimeError
        if is_disk_full(error):
            raise create_hub_disk_error(name) from None
        raise AssetError(
            f"FP2034 can't fetch {name}: it is not a local directory, and the model hub can't be reached "
            f"({type(error).__name__}); models that need no hub: {parts}"
        ) from None


def _check_config(folder: Path, what: str) -> None:
    if not (folder / "config.json").is_file():
        raise AssetError(f"FP2035 {what} has no config.json, so it is not a transformers model; name a folder with one")


def _check_folder(folder: Path) -> Path:
    _check_config(folder, str(folder))
    if not any(folder.glob("*.safetensors")):
        raise AssetError(f"FP2036 {folder} has no .safetensors weights; other formats can run code and are not read")
    return folder


UNBOUNDED = 1 << 30
"""Number of tokens that stands for no limit."""


def count_readable_tokens(folder: Path, before: int, otherwise: int) -> int:
    """Return the largest number of text tokens that the model reads, a multiple of the padding step.

    Args:
        folder: the model's folder.
        before: positions that an adapter takes up before the text.
        otherwise: the limit for models whose configuration has none.
    """
    from fedpeft.data.examples import LENGTH_STEP

    config = load_model_config(folder)
    longest = getattr(config, "max_position_embeddings", None) or otherwise
    return max(LENGTH_STEP, (longest - before) // LENGTH_STEP * LENGTH_STEP)

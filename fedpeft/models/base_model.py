"""From what the user calls a base model to a local folder that transformers' Auto classes load."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from fedpeft.data.model_config import load_model_config
from fedpeft.errors import AssetError, ConfigError
from fedpeft.families import MODELS as MODELS
from fedpeft.machine.cache import create_hub_disk_error
from fedpeft.machine.files import is_disk_full
from fedpeft.parts import suggest_legal
from fedpeft.spec import Spec, parse_spec


class BaseModel(Protocol):
    """A model part: a pretrained model that needs no hub.

    Attributes:
        origin: what the model is called on the hub; "" where it is not there.
        license: of its weights, as the hub writes it; "" where they have none.
    """

    origin: ClassVar[str]
    license: ClassVar[str]

    def resolve(self) -> Path:
        """A folder with config.json, model.safetensors and, for text, the tokenizer; fetched or made on first use."""
        ...


# No pickled weights, no code, no weights in other frameworks' formats.
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def resolve_model(text: str) -> Path:
    """The folder of a model part `name` or `name(key=value)`, of an existing local directory, or of the hub's ORG/NAME.

    Raises:
        ConfigError: neither of these; the message names the nearest parts. Or nothing is named.
        AssetError: it can't be fetched, or its folder has no config.json or no safetensors weights.
    """
    if not text:
        raise ConfigError(
            "FP1205 these rows are pairs of texts, for an encoder with a decoder such as T5 or BART, and no model "
            "part is one that has learned anything; name yours: --model FOLDER, or --model ORG/NAME of the hub"
        )
    if folder := find_local_folder(text):
        return _check_folder(folder)
    if text not in MODELS.names and os.path.isfile(os.path.expanduser(text)):
        raise AssetError(
            f"FP2030 the model {text!r} is a file; name the folder that holds config.json, weights and tokenizer"
        )
    if spec := parse_part(text):
        folder = MODELS.build(spec).resolve()
        _check_config(folder, f"what the model {spec.name} gives ({folder})")
        return folder
    if not _has_hub_form(text):
        raise AssetError(f"FP2031 there is no model directory {text!r}")
    return _download_from_hub(text)


def parse_part(text: str) -> Spec | None:
    """The model part that `text` names; None: it has the form of a path or of a model of the hub.

    Raises:
        ConfigError: it has another form, and is no part's.
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
    """Refuse a model that nothing here is called, and settings that are not legal; nothing is fetched.

    Raises:
        ConfigError: says what is legal.
    """
    if not find_local_folder(text) and not os.path.isfile(os.path.expanduser(text)) and parse_part(text):
        MODELS.check(text)


def _is_hub_name(text: str) -> bool:
    """Whether it is a name that no part has, but models of the hub do: bert-base-uncased, gpt2.5."""
    return text not in MODELS.names and re.fullmatch(r"\w+([.-]\w+)+", text) is not None


def _has_hub_form(text: str) -> bool:
    """Whether it has the form ORG/NAME."""
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")


def find_local_folder(text: str) -> Path | None:
    """The existing folder that `text` names, absolute; None: it names a part, or a model of the hub."""
    name = os.path.expanduser(text)
    if not os.path.isdir(name):  # unlike a Path's, its answer to a name that no file can have is no
        return None
    folder = Path(name)
    return folder.absolute() if text not in MODELS.names or len(folder.parts) > 1 else None


@dataclass(frozen=True)
class Origin:
    """What others may know of a base model: its name, no path of this machine, and its license; "": unknown."""

    name: str
    license: str = ""


def get_origin(text: str) -> Origin:
    """Where the model that `text` names comes from: the hub's name, else a part's, or a folder's last part.

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
        raise ConfigError(f"FP1207 {name!r} is not a hub name of the form ORG/NAME, nor a local directory") from None
    except GatedRepoError:
        raise AssetError(f"FP2032 the hub asks you to log in and accept the licence of {name} first") from None
    except RepositoryNotFoundError:
        raise AssetError(
            f"FP2033 the hub has no model {name} that is open to you; without a hub there are: {parts}"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, RuntimeError) as error:  # RuntimeError: of xet
        if is_disk_full(error):
            raise create_hub_disk_error(name) from None
        raise AssetError(
            f"FP2034 can't fetch {name}: it is no local directory, and the model hub is out of reach "
            f"({type(error).__name__}); models that need no hub: {parts}"
        ) from None


def _check_config(folder: Path, what: str) -> None:
    if not (folder / "config.json").is_file():
        raise AssetError(f"FP2035 {what} has no config.json, so it is not a transformers model")


def _check_folder(folder: Path) -> Path:
    _check_config(folder, str(folder))
    if not any(folder.glob("*.safetensors")):
        raise AssetError(f"FP2036 {folder} has no .safetensors weights; other formats can run code and are not read")
    return folder


UNBOUNDED = 1 << 30
"""Tokens that a model reads which says nothing of a limit."""


def count_readable_tokens(folder: Path, before: int, otherwise: int) -> int:
    """The most tokens of a text that the model in `folder` reads, in whole steps of padding.

    Args:
        before: positions that an adapter takes up before the text.
        otherwise: for models that say nothing of how much they read.
    """
    from fedpeft.data.examples import LENGTH_STEP

    config = load_model_config(folder)
    longest = getattr(config, "max_position_embeddings", None) or otherwise
    return max(LENGTH_STEP, (longest - before) // LENGTH_STEP * LENGTH_STEP)

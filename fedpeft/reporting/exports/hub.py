"""An exported folder to the Hugging Face hub; where that is out of reach, the folder stays, ready to be sent later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpeft.errors import ConfigError, RunError


def check_name(name: str) -> None:
    """Refuse what is no name on the hub.

    Raises:
        ConfigError: it is not of the form ORG/NAME.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        if name.count("/") != 1:
            raise HFValidationError
        validate_repo_id(name)
    except HFValidationError:
        raise ConfigError(f"FP1359 {name!r} is not of the form ORG/NAME, which models on the hub have") from None


def push(folder: Path, name: str, public: bool = False, endpoint: str | None = None) -> str:
    """Send an exported folder as one commit to the model `name`, which is made where there is none; its address.

    Args:
        folder: what `fedpeft.export` has written.
        name: ORG/NAME.
        public: whether a model that is made can be seen by all; one that exists stays as it is.
        endpoint: of another hub; None: as HF_ENDPOINT says, or the usual one.

    Raises:
        ConfigError: it is no name.
        RunError: the hub is out of reach, or refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    check_name(name)
    hub: Any = HfApi(endpoint=endpoint)
    try:
        made = hub.create_repo(name, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Adapter trained with fedpeft")
    except Exception as error:  # what the library's transport raises is called otherwise in each of its versions
        said = str(error).strip().splitlines()
        reason = said[0].rstrip(" .") if said else type(error).__name__
        raise RunError(
            f"FP5167 {name} could not be sent to the hub ({reason}); {folder} holds all that it would get: send it "
            f"later by hf upload {name} {folder}, or log in first by hf auth login"
        ) from None
    return str(made)

"""Upload of an exported folder to the Hugging Face hub; if the hub is unreachable, the folder stays for later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpeft.errors import ConfigError, RunError


def check_name(name: str) -> None:
    """Reject a name that the hub does not allow.

    Raises:
        ConfigError: the name is not of the form ORG/NAME.
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
    """Send an exported folder as one commit to the model `name`, which is created if it is missing; return its address.

    Args:
        folder: a folder that `fedpeft.commands.export` has written.
        name: ORG/NAME.
        public: whether everybody can see a newly created model; an existing one stays as it is.
        endpoint: address of another hub; None: HF_ENDPOINT, or the usual one.

    Raises:
        ConfigError: the name is not of the form ORG/NAME.
        RunError: the hub is unreachable, or refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    check_name(name)
    hub: Any = HfApi(endpoint=endpoint)
    try:
        made = hub.create_repo(name, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Adapter trained with fedpeft")
    except Exception as error:  # the errors of the library's transport have other names in each of its versions
        said = str(error).strip().splitlines()
        reason = said[0].rstrip(" .") if said else type(error).__name__
        raise RunError(
            f"FP5167 {name} could not be sent to the hub ({reason}); {folder} holds the complete export: send it later "
            f"by hf upload {name} {folder}, or log in first by hf auth login"
        ) from None
    return str(made)

"""Parts from outside in both halves of the app: each message lists the server's, and a node with others refuses it.

Both halves read one run config, which only names its parts. A node with another file under that name would send updates
that count wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flwr.app import ConfigRecord, RecordDict

from fedpeft.errors import PayloadError

RECORD: Final = "parts"
"""Name of the record, and of its only key, with the digests of the server's parts."""


def add_parts(content: RecordDict, told: Sequence[str]) -> RecordDict:
    """Return the content of a message to a node with the digests of the server's parts."""
    return RecordDict({**content, RECORD: ConfigRecord({RECORD: list(told)})})


def check_same_parts(content: RecordDict, run_config: Mapping[str, Any]) -> None:
    """Refuse a message from a server whose parts from outside differ from this node's.

    Raises:
        FedpeftError: a part is missing here, is from another file, or is not listed; or the run config can't be used.
    """
    from fedpeft.deployment.compared_parts import WHOLE_RUN, check_all_told, check_parts
    from fedpeft.flower.settings import read_config

    told: Any = content.config_records.get(RECORD, ConfigRecord()).get(RECORD, [])
    if not isinstance(told, list) or not all(isinstance(text, str) for text in told):
        raise PayloadError(f"FP6102 the server lists its plugins' parts as {told!r:.80}; legal is a list of texts")
    check_parts(told, WHOLE_RUN)
    check_all_told(told, read_config(run_config), WHOLE_RUN)

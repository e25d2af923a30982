"""What does not go with an encoder and a decoder: what would act on one of a row's two texts, or on none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft.run.setup import Setup


def check_translation(setup: Setup) -> None:
    """Refuse what moves the words of a row.

    Raises:
        ConfigError: says what, and what to do.
    """
    for correction in setup.drift.corrections:
        if correction.changes_loss:
            raise ConfigError(
                f"{correction.name} moves the words that a model reads, and seq2seq reads two texts of a row; leave it "
                "out of --drift"
            )

"""What does not go with captions of images: what would compute something else, or nothing, is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.aggregation.head_start import PredictsTargets
from fedpeft.aggregation.task_rules import TaskStrategy
from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup

START = "ridge(scale=1.0)"
"""How a connector starts in closed form: as the regression onto embeddings, which are no logits to be scaled."""


def check_captions(setup: Setup) -> None:
    """Refuse starts and rules that are of classes, or of texts alone.

    Raises:
        ConfigError: says what, and what to do.
    """
    head = setup.head
    if head.exchanges and not (isinstance(head, PredictsTargets) and head.predicts_targets):
        raise ConfigError(
            f"FP1300 head={setup.config.head} computes logits of classes, and a connector computes embeddings "
            f"of images; use --head '{START}' or zero"
        )
    if isinstance(setup.strategy, TaskStrategy) and setup.strategy.makes_head:
        raise ConfigError(f"FP1301 {setup.config.strategy} needs class labels, which captions lack; use fedit")

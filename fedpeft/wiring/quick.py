"""`--quick`: settings for a first answer. They say what they are; none of its figures is a result."""

from __future__ import annotations

from dataclasses import replace

from fedpeft.config import RunConfig
from fedpeft.spec import format_value

ROUNDS, TOKENS, ROWS, TEST_ROWS = 4, 64, 1000, 500
"""At most so many; the rows are those of `fedpeft.data.datasets.sample`, where a run's config.toml names them."""


def shorten_config(config: RunConfig) -> RunConfig:
    """Return the configuration with few rows, rounds and tokens."""
    return replace(
        config,
        dataset=f"sample(of={format_value(config.dataset)}, rows={ROWS}, test_rows={TEST_ROWS})",
        rounds=min(config.rounds, ROUNDS),
        tokens=min(config.tokens, TOKENS),
    )

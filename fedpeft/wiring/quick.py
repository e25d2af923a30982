"""`--quick`: a preview of federated training in about a minute. Its numbers are those of a sample: do not report them.

An adapter gains little on few examples: with 1,000 reviews, no round beats the start. So the default dataset keeps all
its training examples and has fewer rounds (`experiments/quick`). Other datasets can be of any size and are cut.
"""

from __future__ import annotations

from dataclasses import replace

from fedpeft.parts.spec import format_value
from fedpeft.wiring.config import RunConfig

TOKENS = 64
"""The most tokens of a text."""

ROUNDS, ROWS, TEST_ROWS = 4, 1000, 500
"""The most rounds, training examples and test examples of a dataset."""

DEFAULT_ROUNDS, DEFAULT_TEST_ROWS = 6, 2000
"""The most rounds and test examples of the default dataset."""

ROWS_PER_CLIENT, USUAL_CLIENTS = 160, 100
"""Its most training examples per client, so that few clients do not train for long. 100 clients share all 15,077."""


def shorten_config(config: RunConfig) -> RunConfig:
    """Return the configuration with few examples, rounds and tokens, and otherwise unchanged.

    By default, only the start and the last state are evaluated. Most runs then keep the last, and score one state.
    """
    rounds, rows, test_rows = ROUNDS, ROWS, TEST_ROWS
    if config.dataset == RunConfig.dataset:
        clients = config.clients if isinstance(config.clients, int) and config.clients else USUAL_CLIENTS
        rounds, rows, test_rows = DEFAULT_ROUNDS, ROWS_PER_CLIENT * clients, DEFAULT_TEST_ROWS
    return replace(
        config,
        dataset=f"sample(of={format_value(config.dataset)}, rows={rows}, test_rows={test_rows})",
        rounds=min(config.rounds, rounds),
        tokens=min(config.tokens, TOKENS),
        measure=f"validation(every={rounds})" if config.measure == RunConfig.measure else config.measure,
    )

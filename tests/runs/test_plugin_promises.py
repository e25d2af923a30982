"""Parts from outside keep what the classes that they are made from have promised, or the run says which does not."""

from __future__ import annotations

from dataclasses import dataclass

import fedpeft
from fedpeft.aggregation.strategy import (
    LinearStrategy,
)
from tests.refusals import refuses


@dataclass(frozen=True)
class NoNumbers(LinearStrategy):
    def finish(self, before, after, layout, round_number):
        return {name: tensor * float("nan") for name, tensor in after.items()}


def test_a_rule_that_makes_no_numbers_is_named(tmp_path):
    given = {"dataset": "tiny", "clients": 3, "rounds": 1, "workers": 1, "progress": False}
    with refuses("FP5206", "1", "the strategy NoNumbers makes", "NaN or infinite"):
        fedpeft.run_simulation(**given, strategy=NoNumbers(), safeguard="none", output=str(tmp_path / "run"))

"""What a client says of its own work."""

from __future__ import annotations

import pytest

from fedpeft.communication.messages import Instruction, Report
from fedpeft.deployment.client.joining import _format_answer


@pytest.mark.parametrize(("silent", "line"), [(False, "train round 3: 17 examples, loss 0.250, 2 B, 1.5 s"),
                                              (True, "train round 3: loss 0.250, 2 B, 1.5 s")])  # fmt: skip
def test_no_number_of_rows_is_said_that_only_stands_for_them(silent, line):
    report = Report(0, 3, b"ab", rows=17, loss=0.25, seconds=1.5)
    assert _format_answer(Instruction("train", 3, 0, b""), report, silent) == line

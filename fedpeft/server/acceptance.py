"""Which reports the server takes: the others are left out of the round and counted as rejected.

Whatever the strategy, numbers that are not finite, or that no training could have made, would spoil the global model
for everyone; so they are dropped before any rule sees them. What is merely hostile is the robust rules' business.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft.communication.messages import Report
from fedpeft.communication.payload import Shape
from fedpeft.errors import PayloadError
from fedpeft.peft.adapter import State, norm

ABSURD = 1000.0
"""An update may be this many times as long as 1 + the norm of what the client was sent; honest ones stay below 1."""

WORST_LOSS = 1e6
"""A mean loss above this one is a training that has diverged, or a lie that would hide the others' losses."""


def check_report(report: Report) -> None:
    """Refuse a report that says of itself that it failed, or whose numbers make no sense.

    Raises:
        PayloadError: why.
    """
    if report.error:
        raise PayloadError(report.error)
    if report.rows < 1:
        raise PayloadError(f"an update from {report.rows} rows")
    if not abs(report.loss) <= WORST_LOSS:
        raise PayloadError(f"a training loss of {report.loss}: the client's training has diverged")


def check_evaluation(report: Report, predictions: int) -> None:
    """Refuse an evaluation that no rows can have led to; `predictions` is the most that a row can have.

    Raises:
        PayloadError: why.
    """
    check_report(report)
    if not 0 <= report.correct <= report.count <= report.rows * predictions:
        raise PayloadError(f"{report.correct:g} of {report.count:g} predictions are right, of {report.rows} rows")


def check_statistics(statistics: State, shapes: Mapping[str, Shape], rows: int) -> None:
    """Refuse statistics for the head's start that are not those asked for, or that no `rows` rows can have.

    They are sums over rows of products of features, so nothing above rows x the square of an absurdly long feature.

    Raises:
        PayloadError: why.
    """
    if statistics.keys() != shapes.keys():
        raise PayloadError(f"statistics called {sorted(statistics)} instead of {sorted(shapes)}")
    length, limit = norm(statistics), rows * ABSURD**2
    if not length <= limit:
        raise PayloadError(f"statistics of norm {length:.3g}; nothing above {limit:.3g} is taken from {rows} rows")


def check_update(delta: State, received: State, asked: frozenset[str]) -> None:
    """Refuse an update, or a change of a control variate, that holds other tensors than `asked`, is not finite, or is
    absurdly large against what the client `received`.

    Raises:
        PayloadError: why.
    """
    if delta.keys() != asked:
        raise PayloadError(f"an update of {len(delta)} tensors instead of the {len(asked)} asked for")
    length = norm(delta)
    limit = ABSURD * (1 + norm(received))
    if not length <= limit:
        raise PayloadError(f"an update of norm {length:.3g}; nothing above {limit:.3g} is taken")

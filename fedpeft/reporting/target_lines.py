"""Lines about results on classes, numbers, or several labels, for the console's summary and for model cards."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from fedpeft.reporting.console import format_amount

UNEVEN = 1.2
"""The least share of the most frequent class, relative to its even share, at which accuracy alone is misleading."""

FEW = 2000
"""The fewest test examples whose standard error is at most 1.1 points; with fewer, a point or two may be chance."""

SHOWN = 5
"""The most classes that a line names."""

PROBE = "frozen base, linear probe"


def list_target_lines(found: Mapping[str, Any] | None, accuracy: float = math.nan) -> list[tuple[str, str]]:
    """Return lines about `targets` of summary.json: the saved adapter's results on the test set beside the probe's.

    Args:
        found: the section `targets`.
        accuracy: accuracy of the saved adapter on the test set.
    """
    told = found or {}
    lines = [*_list_size_lines(told, accuracy), *_list_class_lines(told)]
    for keys, what in (
        (("rmse", "mae"), "root mean squared / mean absolute error"),
        (("r2", "pearson", "spearman"), "R^2 / Pearson / Spearman"),
        (("micro_f1", "macro_f1"), "F1, micro / macro"),
        (("average_precision", "exact"), "mean average precision / all labels right"),
    ):
        for of, some in (("test rows", told), (PROBE, told.get("probe") or {})):
            if _is_number(some.get(keys[0])):
                values = (some.get(key) for key in keys)
                lines.append(
                    (f"{what}, {of}", " / ".join(format_amount(one) if _is_number(one) else "-" for one in values))
                )
    return lines


def _list_size_lines(told: Mapping[str, Any], accuracy: float) -> list[tuple[str, str]]:
    """Return a line with the size of a test set so small that chance matters, for classes with the standard error.

    The standard error is that of an accuracy with one more right example, and one more wrong one. So it is not 0 for a
    few examples that are all right.
    """
    rows = told.get("rows", FEW)
    if rows >= FEW:
        return []
    if "by_class" not in told or math.isnan(accuracy):
        return [("test rows", f"{rows:,}")]
    share = (accuracy * rows + 1) / (rows + 2)
    return [("test rows, and the standard error on them", f"{rows:,}, {math.sqrt(share * (1 - share) / rows):.4f}")]


def list_card_lines(found: Mapping[str, Any] | None) -> dict[str, str]:
    """Return errors of numbers, or F1 of several labels, on the test set; for uneven classes as `list_target_lines`."""
    told = found or {}
    names = {"rmse": "root mean squared error", "r2": "R^2", "micro_f1": "micro F1", "macro_f1": "macro F1"}
    measured = {name: format_amount(told[key]) for key, name in names.items() if _is_number(told.get(key))}
    return measured | dict(_list_class_lines(told))


def describe_undefined(found: Mapping[str, Any] | None) -> str:
    """Return a note about measures that are NaN or infinite, which JSON can't represent; empty: there are none."""
    names = list(_find_undefined("", found or {}))
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
    return f"measured on the test rows, {', '.join(names[:SHOWN])}{more}: NaN or infinite, so null in the files"


def _find_undefined(name: str, value: Any) -> Iterator[str]:
    """Yield the names of values that are not finite; parts of a dict or list are named behind it."""
    if isinstance(value, Mapping | list | tuple):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from _find_undefined(f"{name}.{key}" if name else str(key), part)
    elif isinstance(value := value.item() if hasattr(value, "item") else value, float) and not math.isfinite(value):
        yield name


def _is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number; a user's own task may use our names for something else."""
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _list_class_lines(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return lines about uneven classes: the share of the most frequent class, and what is found of each class."""
    if not {"most_frequent", "by_class", "balanced_accuracy"} <= told.keys():
        return []
    most, by_class = told["most_frequent"], told["by_class"]
    if most["share"] <= UNEVEN / len(by_class):
        return []
    lines = [(f"always the most frequent class, {most['name']}", f"{most['share']:.4f}")]
    for of, some in (("test rows", told), (PROBE, told.get("probe") or {})):
        if some:
            lines.append((f"balanced accuracy (mean over classes), {of}", f"{some['balanced_accuracy']:.4f}"))
    missed = [name for name, share in by_class.items() if share == 0]
    if missed:
        more = f", and {len(missed) - SHOWN} more" * (len(missed) > SHOWN)
        lines.append(("classes of which no test row is found", ", ".join(missed[:SHOWN]) + more))
    return lines

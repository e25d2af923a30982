"""Draw 600 mutants from a session of cosmic-ray: `python -m experiments.mutation.draw SESSION.sqlite`.

Cosmic-ray makes one mutant for each replacement of each operator, eleven for each `+`. So places are drawn, not
mutants: a place is a position in a file and a family of operators, and one of its mutants is drawn. Three groups have
200 each.

A place is left out if no test can see its mutants: in an annotation, below `if TYPE_CHECKING`, or in code that does not
compile after the mutation.
"""

from __future__ import annotations

import ast
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

import cosmic_ray.plugins
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, WorkItem

SEED = 61
GROUPS = {
    "aggregation": (200, "fedpeft/aggregation/|strategies/"),
    "codecs": (200, "fedpeft/communication/"),
    "accounting": (
        200,
        "fedpeft/privacy/(accountant|exposure|ledger|lifetime_ledger|mechanism|mechanisms/.*|noise|sampled_rdp"
        "|server_noise|server_noises/.*|skellam|summed_book|summed_ledger)[.]py",
    ),
}
"""The number of mutants of each group, and its files as a regular expression."""

Place = tuple[str, tuple[int, int], str]


def get_family(operator: str) -> str:
    """Return the name of an operator without the symbols that it replaces, `ReplaceBinaryOperator` for example."""
    return operator.removeprefix("core/").split("_")[0]


def find_unseen_spans(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the start and the end of each annotation and of each block below `if TYPE_CHECKING`."""
    for node in ast.walk(ast.parse(source)):
        unseen = [getattr(node, name, None) for name in ("annotation", "returns")]
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            unseen.append(node)
        for one in unseen:
            if isinstance(one, ast.expr | ast.stmt):
                yield (one.lineno, one.col_offset), (one.end_lineno or one.lineno, one.end_col_offset or 0)


def is_seen(mutation: MutationSpec) -> bool:
    """Return whether a test could see the mutation."""
    source = mutation.module_path.read_text(encoding="utf-8")
    if any(start <= mutation.start_pos < end for start, end in find_unseen_spans(source)):
        return False
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    try:
        compile(mutate_code(source, operator, mutation.occurrence), str(mutation.module_path), "exec")
    except SyntaxError:
        return False
    return True


def group_places(items: list[WorkItem]) -> dict[Place, list[WorkItem]]:
    """Return the mutants of each place, in an order that does not depend on the session."""
    places: dict[Place, list[WorkItem]] = defaultdict(list)
    by_operator = sorted(items, key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence))
    for item in by_operator:
        mutation = item.mutations[0]
        places[str(mutation.module_path), mutation.start_pos, get_family(mutation.operator_name)].append(item)
    return dict(sorted(places.items()))


def draw(items: list[WorkItem], seed: int) -> Iterator[WorkItem]:
    """Yield the drawn mutants of each group."""
    places = group_places(items)
    for name, (size, files) in GROUPS.items():
        drawing = random.Random(f"{seed} {name}")
        chosen = [place for place in places if re.match(files, place[0])]
        drawing.shuffle(chosen)
        one_each = (drawing.choice(places[place]) for place in chosen)
        drawn = list(islice((item for item in one_each if is_seen(item.mutations[0])), size))
        print(f"{name}: {len(drawn)} mutants at {len(chosen)} places")
        yield from drawn


def keep_drawn(session: WorkDB, seed: int) -> None:
    """Delete the mutants of a session that are not drawn."""
    drawn = list(draw(list(session.work_items), seed))
    session.clear()
    session.add_work_items(drawn)


if __name__ == "__main__":
    with use_db(sys.argv[1], WorkDB.Mode.open) as opened:
        keep_drawn(opened, SEED)

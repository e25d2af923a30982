"""Write the map from tests to executed lines: `python -m experiments.mutation.map TIMES.jsonl MAP.json COVERAGE...`.

Reads the output of `experiments.mutation.contexts`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import coverage


def make_map(times: Path, files: list[Path]) -> dict[str, object]:
    """Return the tests with their seconds, and the numbers of the tests that execute each line of each file."""
    tests = dict(json.loads(line) for line in times.read_text(encoding="utf-8").splitlines())
    places = {nodeid: place for place, nodeid in enumerate(tests)}
    lines: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for file in files:
        data = coverage.CoverageData(str(file))
        data.read()
        for measured in data.measured_files():
            if not Path(measured).is_relative_to(Path.cwd()):  # a test created this file
                continue
            path = str(Path(measured).relative_to(Path.cwd()))
            for line, contexts in data.contexts_by_lineno(measured).items():
                lines[path][line].update(places[nodeid] for nodeid in contexts if nodeid in places)
    numbers = {
        path: {line: sorted(found) for line, found in of_file.items() if found} for path, of_file in lines.items()
    }
    return {"tests": list(tests.items()), "lines": numbers}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(make_map(Path(sys.argv[1]), [Path(file) for file in sys.argv[3:]])))

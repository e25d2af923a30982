"""Repair of Python functions from open-source packages: a function with a defect, and the original.

    # This Python function has a defect:           ->  def is_empty(rows):
    def is_empty(rows):                                    return len(rows) == 0
        return len(rows) != 0
    # Without the defect:

The functions, their packages and the split are those of `code_types`. The defects are synthetic: seeded mutations
(`fedpeft.data.code_mutations`), one per function.

Test examples carry tests if these can be written (`fedpeft.data.function_tests`): they compare a repair with the
original on drawn arguments. The metric `repair` of `fedpeft.evaluate` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.data.code_mutations import SYNTHETIC, plant_defect
from fedpeft.data.datasets.code_types import (
    build_text_rows,
    create_generator,
    is_held_out,
    read_all,
    split_by_package,
)
from fedpeft.data.function_tests import write_tests
from fedpeft.data.python_functions import Function
from fedpeft.data.rows import Dataset
from fedpeft.parts import setting

BEFORE, AFTER = "# This Python function has a defect:", "# Without the defect:"

KEYS = {"instruction": ("prompt", "answer"), "seq2seq": ("source", "target")}
"""Names of question and answer in a row, by task."""


@dataclass(frozen=True)
class CodeRepair:
    """Functions with a synthetic defect, and their originals."""

    package_rows: int = setting(100, "most functions of a package", low=10, high=10_000)
    characters: int = setting(400, "functions with a longer text are left out", low=80, high=100_000)
    task: str = setting("instruction", "for language models or for an encoder with a decoder", choices=tuple(KEYS))
    tested: bool = setting(False, "whether test examples must have tests")
    seed: int = setting(0, "seed of the defects; not the run's seed", low=0)

    suited_partition: ClassVar[str] = "natural"

    def load(self) -> Dataset:
        """Return pairs of defective and original function; owners are packages.

        The first use fetches 30 MB, as `code_types` does.

        Raises:
            AssetError: a package can't be fetched.
            DataError: no function is left.
        """
        train, test = split_by_package(read_all(), self.characters, self._build_rows)
        model = "smollm2" if self.task == "instruction" else "tiny_seq2seq"
        return Dataset(
            "code_repair",
            "text",
            self.task,
            build_text_rows(train),
            build_text_rows(test),
            None,
            model,
            notes=(SYNTHETIC,),
        )

    def _build_rows(self, package: str, functions: Sequence[Function]) -> Iterator[str]:
        count, is_test = 0, is_held_out(package)
        for function in functions:
            if count == self.package_rows:
                return
            random = create_generator(self.seed, package, function)
            defect = plant_defect(function.text, random)
            tests = write_tests(function.text, random) if is_test else None
            if defect is None or (is_test and self.tested and tests is None):
                continue
            asked, answer = KEYS[self.task]
            row = {asked: f"{BEFORE}\n{defect.text}\n{AFTER}\n", answer: function.text}
            yield json.dumps(row if tests is None else row | {"tests": tests})
            count += 1


part = CodeRepair

"""MedQA, questions of medical examinations, from your own download: `medqa:FOLDER`.

FOLDER is a folder of data_clean/questions, such as US/4_options or US, with the files train, dev and test, or
phrases_no_exclude_train and so on, as lines of JSON in the original layout:

    {"question": "...", "options": {"A": "...", "B": "..."}, "answer": "...", "answer_idx": "B", "meta_info": "step1"}

The prompt lists the options, and the answer is a letter. dev is the validation set. Each row stores its letters as
choices, so `evaluate` measures which one is the likeliest. The examination in meta_info is the owner. Nothing is
fetched. Jin et al. 2020, arXiv:2009.13081 (abstract only). github.com/jind11/MedQA links the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedpeft.data.conversations import pack_choice
from fedpeft.data.record_files import read_records
from fedpeft.data.rows import Dataset, Rows
from fedpeft.errors import DataError, shorten_value
from fedpeft.parts import setting

STEMS = ("", "phrases_no_exclude_")
"""What may stand before the name of a split."""

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class MedQa:
    """Medical questions with options."""

    argument: ClassVar[str] = "path"

    path: str = setting(dataclasses.MISSING, "folder with train.jsonl, dev.jsonl and test.jsonl", path=True)

    def load(self) -> Dataset:
        """Return the questions, checked.

        Raises:
            DataError: a file is missing, can't be read or has another layout.
        """
        train, validation, test = map(self._read_split, ("train", "dev", "test"))
        return Dataset("medqa", "text", "instruction", train, test, None, "smollm2", validation=validation)

    def _read_split(self, split: str) -> Rows:
        folder = Path(self.path).expanduser()
        files = [folder / f"{stem}{split}.jsonl" for stem in STEMS]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise DataError(
                f"FP3476 {folder} has neither {files[0].name} nor {files[1].name}; give a folder of MedQA's "
                "data_clean/questions, such as US/4_options"
            )
        rows = [pack_question(record, f"{place} of {file}") for place, record in read_records(str(file))]
        if not rows:
            raise DataError(f"FP3028 {file} has no rows")
        return Rows([row for row, _ in rows], None, np.array([owner for _, owner in rows]))


def pack_question(record: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return a record as a packed row, and its examination.

    Raises:
        DataError: the record has another layout; `where` is named.
    """
    texts = {name: record.get(name) for name in ("question", "answer_idx", "meta_info")}
    if wrong := [name for name, value in texts.items() if not isinstance(value, str) or not value.strip()]:
        raise DataError(
            f"FP3477 {where} must have a text in the column {wrong[0]!r}, as MedQA has, got "
            f"{shorten_value(texts[wrong[0]])}"
        )
    options = record.get("options")
    if (
        not isinstance(options, dict)
        or not 2 <= len(options) <= len(LETTERS)
        or tuple(options) != tuple(LETTERS[: len(options)])
        or not all(isinstance(option, str) and option.strip() for option in options.values())
    ):
        raise DataError(
            f"FP3478 {where}: options must be texts under the letters A, B, ... in this order, got "
            f"{shorten_value(options)}"
        )
    right = texts["answer_idx"]
    if right not in options or record.get("answer", options[right]) != options[right]:
        raise DataError(
            f"FP3479 {where}: answer_idx {right!r} must be the letter of the option that is the answer, "
            f"{shorten_value(record.get('answer'))}"
        )
    listed = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    prompt = f"{texts['question']}\n{listed}\nAnswer:"
    return pack_choice(prompt, str(right), tuple(options), where), str(texts["meta_info"])


part = MedQa

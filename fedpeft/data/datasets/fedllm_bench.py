"""Datasets of FedLLM-Bench from your own download: `fedllm_bench:FILE`, with its clients as owners.

FILE is one JSON object that has a list of records for each client. Its columns decide the task:

    instruction, response     Fed-Aya, Fed-ChatbotIT, Fed-WildChat with single turns; in alpaca's prompt
    conversations             Fed-WildChat with several turns; in the model's chat template
    prompt, chosen, rejected  Fed-ChatbotPA: preferences, learned by DPO; prompts as they stand

The benchmark has no test set with answers of the same clients, so a share of each client's examples is held out. The
file of one client (local/local_*.json) is a list, which `file:` reads, and a real client's --data. Nothing is fetched.
Ye et al. 2024, arXiv:2406.04845; github.com/rui-ye/FedLLM-Bench links the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedpeft.data import user_rows
from fedpeft.data.incomplete_rows import INCOMPLETE, REFUSE
from fedpeft.data.instruction_columns import CONVERSATIONS, SPEAKERS, choose_reading
from fedpeft.data.preferences import SIDES
from fedpeft.data.prompt_templates import BARE, check_template
from fedpeft.data.record_files import read_json_object
from fedpeft.data.rows import Dataset
from fedpeft.errors import DataError
from fedpeft.parts import setting

ANSWER = "response"
"""Column of the answers to instructions."""

OWNER, PACKED = "client of fedpeft", "packed by fedpeft"
"""Columns for the client and the packed example; no file has columns of these names."""


@dataclass(frozen=True)
class FedLlmBench:
    """Instructions, conversations or preferences of FedLLM-Bench, by client."""

    argument: ClassVar[str] = "path"
    suited_partition: ClassVar[str] = "natural"
    task_in_rows: ClassVar[bool] = True

    path: str = setting(dataclasses.MISSING, "file with all clients, such as Fed-Aya/aya_38c_25k.json", path=True)
    template: str | None = setting(
        None,
        "prompt template: alpaca, chat (the model's own), bare or FILE.jinja; None: as above",
        path=True,
        check=check_template,
    )
    incomplete: str = setting(
        REFUSE,
        "examples without a question or an answer; drop: leave them out and report their number",
        choices=INCOMPLETE,
    )
    beta: float = setting(
        0.1, "preferences: strength of the penalty for leaving the base model's answers (DPO)", above=0.0, high=100.0
    )
    test_fraction: float = setting(0.2, "share of the examples held out for test", above=0.0, high=0.9)
    seed: int = setting(0, "seed of the held-out share; not the run's seed", low=0)

    def load(self) -> Dataset:
        """Return the examples, checked.

        Raises:
            DataError: the file can't be read or has another layout.
        """
        content = read_json_object(str(Path(self.path).expanduser()))
        _, first = next(iterate_records(content, self.path), ("", {}))
        if not first:
            raise DataError(f"FP3028 {self.path} has no rows")
        template = self.template or (BARE if set(SIDES) <= first.keys() else None)
        reading = choose_reading(first, PACKED, None, template, ANSWER, self.beta)
        if reading is None or reading.task == "seq2seq":
            raise DataError(
                f"FP3202 the first record of {self.path} has the columns {', '.join(map(repr, first))}, but "
                "FedLLM-Bench has instruction and response, or conversations, or prompt, chosen and rejected"
            )
        names = user_rows.Names(PACKED, None, OWNER, "fedllm_bench(...)", incomplete=self.incomplete)
        needs = {**reading.needs, "owner": OWNER}
        complete = names.complete(iterate_records(content, self.path), self.path, needs)
        table = user_rows.read(self.path, reading.packed(complete, self.path), names)
        table = dataclasses.replace(table, left_out=complete.note)
        made = user_rows.build_dataset(Path(self.path).stem, table, None, self.test_fraction, self.seed)
        notes = (*made.notes, f"taken as {reading.said}")
        return dataclasses.replace(made, task=reading.task, template=reading.template, notes=notes)


def iterate_records(content: dict[str, Any], source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of all clients with the client's name; `source` names the file in messages.

    A first message of the model is left out, as FedLLM-Bench's own code does.

    Raises:
        DataError: a client has no list of JSON objects.
    """
    for client, records in content.items():
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError(
                f"FP3203 {source}: {client!r} must be the name of a client with a list of JSON objects, as in the "
                "files of FedLLM-Bench that have all clients"
            )
        for number, record in enumerate(records, 1):
            turns = record.get(CONVERSATIONS)
            first = turns[0] if isinstance(turns, list) and turns else None
            if isinstance(first, dict) and SPEAKERS.get(str(first.get("from"))) == "assistant":
                record = {**record, CONVERSATIONS: turns[1:]}
            yield f"record {number} of the client {client!r}", {**record, OWNER: client}


part = FedLlmBench

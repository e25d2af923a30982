"""Examples of Flower's FlowerTune tracks, on the same clients as there: `flowertune(NAME, track=finance)`.

    general_nlp   the prompt is the column instruction; the column input is left out, as the template does
    finance, code the prompt is instruction, a space, input
    medical       the prompt is the column input

The answer is the column output after a space. Prompt and answer are tokenized as one text, and only the answer's tokens
are learned. The templates add no token that ends an answer; `end=True` does.

Row i belongs to the client that holds it in `dataset.shuffle(seed=42)`, cut into contiguous shards (Flower's
IidPartitioner). This client is its owner for the natural partition. Validation and test examples are taken out of these
shards; all other rows stay where they are.

Source: github.com/adap/flower, examples/flowertune-llm-* (Apache-2.0). The datasets have licenses of their own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedpeft.data.prompt_templates import PromptTemplate
from fedpeft.data.record_files import DELIMITERS, JSON_LINES, read_records
from fedpeft.data.rows import Dataset, Rows, split_validation
from fedpeft.errors import AssetError, DataError, is_disk_full
from fedpeft.machine.cache import create_hub_disk_error
from fedpeft.parts import setting

TRACKS = {
    "general_nlp": ("flwrlabs/alpaca-gpt4", 20),
    "finance": ("flwrlabs/fingpt-sentiment-train", 50),
    "medical": ("flwrlabs/medical-meadow-medical-flashcards", 20),
    "code": ("flwrlabs/code-alpaca-20k", 10),
}
"""Dataset and number of clients (SuperNodes) of each track."""

ENDINGS = (*JSON_LINES, *DELIMITERS, ".json")


@dataclass(frozen=True)
class FlowerTune:
    """Instructions of a track."""

    argument: ClassVar[str] = "name"
    template: ClassVar[str] = "flowertune"
    suited_partition: ClassVar[str] = "natural"

    name: str = setting(
        dataclasses.MISSING,
        "dataset on the hub, a folder with a copy, or a file (.jsonl, .json, .csv, .tsv)",
        path=True,
    )
    track: str = setting("general_nlp", "track, which decides the columns of the prompt", choices=tuple(TRACKS))
    clients: int = setting(20, "number of shards that the examples are split into", low=1, high=100_000)
    shuffle: int = setting(42, "seed of the shuffling; not the run's seed", low=0)
    end: bool = setting(False, "also learn the model's end-of-text token after each answer")
    test: str | None = setting(None, "file of test examples with the same columns; None: hold some out", path=True)
    held_out: int = setting(200, "examples held out for test if `test` is None; at most a tenth of all", low=1)

    def load(self) -> Dataset:
        """Return the examples, checked.

        Raises:
            AssetError: the dataset can't be fetched, or the extra 'hub' is missing.
            DataError: its rows can't be used, or there are fewer rows than clients.
        """
        texts = self._read_texts(self.name)
        rows = Rows(texts, None, assign_clients(len(texts), self.clients, self.shuffle))
        if self.test is None:
            rows, test = split_validation(rows, min(self.held_out, max(1, len(rows) // 10)))
        else:
            test = Rows(self._read_texts(self.test))
        return Dataset(
            name=f"flowertune {self.track}",
            kind="text",
            task="instruction(beyond=unlearned)",
            train=rows,
            test=test,
            label_names=None,
            default_model="smollm2",
        )

    def _read_texts(self, source: str) -> list[str]:
        texts = [self.pack_row(record, f"{place} of {source}") for place, record in _read_records(source)]
        if not texts:
            raise DataError(f"FP3028 {source} has no rows")
        return texts

    def pack_row(self, record: Mapping[str, Any], where: str) -> str:
        """Return a record as one text (`fedpeft.data.conversations`).

        Raises:
            DataError: a column is missing or holds no text; `where` is named.
        """
        instruction = _get_column(record, "input" if self.track == "medical" else "instruction", where)
        if self.track in ("finance", "code"):
            instruction += " " + _get_column(record, "input", where, empty=True)
        answer = _get_column(record, "output", where)
        prompt = PromptTemplate(self.template).format_prompt({"instruction": instruction}, where)
        return json.dumps({"prompt": prompt, "answer": f" {answer}", "whole": True, "end": self.end})


def assign_clients(rows: int, clients: int, seed: int) -> NDArray[np.int64]:
    """Return the client of each row, int64 (rows,): shuffled as `datasets` does, then cut into contiguous shards.

    Raises:
        DataError: there are fewer rows than clients.
    """
    if rows < clients:
        raise DataError(f"FP3033 {clients} clients can't share {rows} examples; give fewer clients")
    client = np.empty(rows, np.int64)
    for k, shard in enumerate(np.array_split(np.random.default_rng(seed).permutation(rows), clients)):
        client[shard] = k
    return client


def _get_column(record: Mapping[str, Any], name: str, where: str, empty: bool = False) -> str:
    value = record.get(name)
    if value is None and name not in record:
        raise DataError(f"FP3034 {where} has no column {name!r}; it has {', '.join(map(str, record))}")
    if empty and value is None:
        return ""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise DataError(f"FP3035 {where}: the column {name!r} must hold text, got {value!r:.40}")
    return value


def _read_records(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the records of a file, a folder or a dataset of the hub, each with its place."""
    path = Path(source).expanduser()
    if path.is_file() or path.suffix.lower() in ENDINGS:
        yield from _read_list(path) if path.suffix.lower() == ".json" else read_records(source)
        return
    files = sorted(f for f in path.glob("train*") if f.suffix.lower() in ENDINGS) if path.is_dir() else []
    if len(files) == 1:
        yield from _read_records(str(files[0]))
        return
    yield from _read_hub(source)


def _read_list(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the records of a JSON file that contains one list, such as Stanford Alpaca's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"FP3036 there is no file {path}; check the path") from None
    except OSError as error:
        raise DataError(f"FP3037 can't read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"FP3038 {path} is not valid JSON: {error}") from None
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise DataError(f"FP3039 {path} must hold a list of JSON objects")
    for number, record in enumerate(content, 1):
        yield f"record {number}", record


def _read_hub(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if importlib.util.find_spec("datasets") is None:
        raise AssetError(
            f"FP2004 to fetch {name}, install the package datasets (pip install 'fedpeft[hub]'), or give a local file "
            f"({', '.join(ENDINGS)}) or a folder with one such file called train"
        )
    import datasets

    try:
        rows = datasets.load_dataset(name, split="train")
    except Exception as error:  # the library may raise anything for names, networks and files
        if is_disk_full(error):
            raise create_hub_disk_error(f"the dataset {name}") from None
        reason = " ".join(str(error).split())[:200]
        raise AssetError(
            f"FP2005 can't fetch the dataset {name}: {reason}; give a local file or folder of it"
        ) from None
    for number, record in enumerate(rows, 1):
        yield f"row {number}", record


part = FlowerTune

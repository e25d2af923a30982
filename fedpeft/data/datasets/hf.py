"""Any text dataset of the hub: `hf:NAME`, or `hf(name="ORG/NAME", text="sentence", label="label", test="validation")`.

Needs `pip install 'fedpeft[hub]'` and access to the hub, or a copy in the cache of the `datasets` library. Datasets
that run their own code are not loaded. The dataset's page states its license.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fedpeft.data import user_rows
from fedpeft.data.conversations import pack_prompts
from fedpeft.data.incomplete_rows import DROP, INCOMPLETE, REFUSE
from fedpeft.data.label_columns import KINDS
from fedpeft.data.prompt_templates import check_template
from fedpeft.data.record_files import TablePlace
from fedpeft.data.rows import NO_MODEL, Dataset
from fedpeft.data.text_to_text import pack_targets
from fedpeft.errors import AssetError, ConfigError, DataError, is_disk_full
from fedpeft.machine.cache import create_hub_disk_error
from fedpeft.parts import setting, suggest_legal


@dataclass(frozen=True)
class HF:
    """Examples from the hub."""

    argument: ClassVar[str] = "name"

    name: str = setting(dataclasses.MISSING, "the dataset's name on the hub, or a folder with a copy", path=True)
    subset: str | None = setting(None, "its configuration, if it has several")
    text: str = setting("text", "name of the column with the texts")
    label: str | None = setting(
        "label", "name of the column with classes, numbers or lists of labels, or 'toxic + insult'; None: language"
    )
    label_type: str = setting(
        "auto", "type of the labels; auto: detected from their values and reported", choices=KINDS
    )
    labels: str | None = setting(
        None, "names of classes or labels in order: a,b,c; None: those that occur in the training examples"
    )
    mean: float | None = setting(None, "mean of the numbers to predict; None: that of the training examples")
    deviation: float | None = setting(
        None, "standard deviation of the numbers to predict; None: that of the training examples", above=0
    )
    owner: str | None = setting(None, "name of the column of owners, for the natural partition")
    incomplete: str = setting(
        REFUSE,
        "rows without a text, an answer, a label (-1: hidden) or an owner; drop: leave them out and report their "
        "number",
        choices=INCOMPLETE,
    )
    template: str | None = setting(
        None,
        "template of instruction data: alpaca, chat (the model's own) or FILE.jinja for columns",
        path=True,
        check=check_template,
    )
    answer: str = setting("output", "name of the column with the answers if a template writes the prompts")
    target: str | None = setting(
        None, "name of the column with the texts that a decoder writes (T5, BART); it reads the column `text`"
    )
    train: str = setting("train", "name of the split with the training examples")
    test: str | None = setting("test", "name of the split with the test examples; None: hold out training examples")
    test_fraction: float = setting(
        0.2, "share of the examples held out for test if `test` is None", above=0.0, high=0.9
    )
    revision: str | None = setting(None, "a commit of the dataset, to pin it")
    seed: int = setting(0, "seed of the held-out share; not the run's seed", low=0)

    task_in_rows: ClassVar[bool] = True

    def load(self) -> Dataset:
        """Return the examples, checked.

        Raises:
            ConfigError: the `datasets` library is not installed, or a split does not exist.
            AssetError: the dataset can't be fetched.
            DataError: its rows can't be used.
        """
        if importlib.util.find_spec("datasets") is None:
            raise ConfigError(
                "FP1092 hf: datasets need the package datasets; install it with: pip install 'fedpeft[hub]'"
            )
        import datasets

        try:
            splits = datasets.load_dataset(self.name, self.subset, revision=self.revision)
        except datasets.exceptions.DatasetNotFoundError:
            raise AssetError(
                f"FP2006 the hub has no dataset {self.name!r} that you can "
                "access; check its name, and log in if it is private"
            ) from None
        except ValueError as error:  # an unknown subset; the library's message lists those that exist
            raise ConfigError(f"FP1093 hf dataset {self.name}: {' '.join(str(error).split())}") from None
        except (OSError, RuntimeError) as error:  # ConnectionError and the hub's HTTP errors are OSErrors
            if is_disk_full(error):
                raise create_hub_disk_error(f"the dataset {self.name}") from None
            reason = " ".join(str(error).split())[:200]
            raise AssetError(f"FP2007 can't fetch the dataset {self.name} from the hub: {reason}") from None
        except datasets.exceptions.DatasetsError as error:  # files in another format than expected
            if is_disk_full(error):
                raise create_hub_disk_error(f"the dataset {self.name}") from None
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise DataError(
                f"FP3040 the files of hf dataset {self.name} can't be read as rows: {reason}; name a dataset of the "
                "hub or a folder with one, and for a single file use file:PATH"
            ) from None
        return self.build_dataset(splits)

    def build_dataset(self, splits: Any) -> Dataset:
        """Return the dataset of `splits`: loaded tables of the `datasets` library by the names of the splits.

        Raises:
            ConfigError: a split does not exist.
            DataError: its rows can't be used.
        """
        train = self._read_table(splits, self.train)
        test = None if self.test is None else self._read_table(splits, self.test)
        known, column = (
            user_rows.KnownLabels.from_settings(self.mean, self.deviation, self.labels),
            self.label or "label",
        )
        made = user_rows.build_dataset(self.name, train, test, self.test_fraction, self.seed, None, known, column)
        if self.target is not None:
            return dataclasses.replace(made, task="seq2seq", default_model=NO_MODEL)
        return dataclasses.replace(made, task="instruction") if self.template else made

    def _read_table(self, splits: Any, split: str) -> user_rows.Table:
        if split not in splits:
            raise ConfigError(
                f"FP1094 {self.name} has no split {split!r}; {suggest_legal(split, splits)}; test=None holds out "
                "training examples"
            )
        rows = splits[split]
        packed = self.template is not None or self.target is not None
        label, ask = None if packed else self.label, '"hf(..., ROLE=COLUMN)"'
        names = user_rows.Names(self.text, label, self.owner, ask, self.label_type, self.incomplete)
        column = rows.features.get(self.label)
        each = getattr(column, "feature", column)  # of a list
        classes = getattr(each, "names", None)  # of a ClassLabel

        def read_rows() -> Iterator[tuple[str, dict[str, Any]]]:
            for number, record in enumerate(rows, 1):
                if classes is not None:
                    record = record | {self.label: self._name_classes(record[self.label], classes, split)}
                yield TablePlace(f"row {number}"), record

        source = f"{self.name} ({split})"
        found: Iterator[tuple[str, Mapping[str, Any]]] = read_rows()
        if not packed:
            return user_rows.read(source, found, names)
        owner = {} if self.owner is None else {"owner": self.owner}
        needs = {"answer": self.target or self.answer} | ({} if self.template else {"text": self.text}) | owner
        complete = names.complete(found, source, needs)
        if self.target is not None:
            found = pack_targets(complete, (self.text, self.target), self.text, source, self.template)
        else:
            assert self.template is not None
            found = pack_prompts(complete, self.template, self.answer, self.text, source)
        return dataclasses.replace(user_rows.read(source, found, names), left_out=complete.note)

    def _name_classes(self, value: Any, classes: Sequence[str], split: str) -> Any:
        """Return the class names for a label's numbers; None if the label is missing or hidden."""
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(number, int) for number in numbers):
            return value
        if any(number < 0 for number in numbers):  # how the hub marks hidden labels
            any_or_none = self.label_type == "labels"  # then rows without a label are not left out
            if self.incomplete != DROP or any_or_none:
                raise DataError(
                    f"FP3041 the split {split!r} of {self.name} has hidden labels; name another split, or leave such "
                    f"rows out: hf(..., incomplete={DROP}){', without label_type=labels' if any_or_none else ''}"
                )
            return None
        found = [classes[number] for number in numbers]
        return found if isinstance(value, list) else found[0]


part = HF

"""Another dataset of texts or conversations with planted secrets, whose exposure `--measure exposure` reports.

    planted(of='shakespeare', count=8, copies=4)

Each secret is `length` random symbols behind a prompt. Its copies are training examples of one owner, drawn among the
owners. They are never held out for validation. The secrets are generated and protect nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from fedpeft.data.dataset_of_another import DatasetOfAnother
from fedpeft.data.rows import Dataset, Rows, join_rows, split_off_validation
from fedpeft.data.secrets import Secrets
from fedpeft.errors import DataError
from fedpeft.machine import seeds
from fedpeft.parts import setting
from fedpeft.parts.families import DATASETS

PROMPT = "The access code of site {} is"


@dataclass(frozen=True)
class Planted(DatasetOfAnother):
    """Another dataset with secrets among its training examples."""

    of: str = setting(
        dataclasses.MISSING, "the other dataset in quotes, such as 'shakespeare' or 'file:PATH'", nested=DATASETS
    )
    count: int = setting(8, "number of secrets", low=1, high=1000)
    copies: int = setting(4, "training examples that contain each secret", low=1, high=10_000)
    length: int = setting(6, "symbols of a secret", low=1, high=64)
    symbols: str = setting("0 1 2 3 4 5 6 7 8 9", "what secrets consist of, with spaces between")
    prompt: str = setting(PROMPT, "text before a secret; {} is the number of the secret")
    seed: int = setting(0, "seed of the secrets and their owners; not the run's seed", low=0)

    @property
    def secrets(self) -> Secrets:
        """The planted secrets."""
        symbols = tuple(dict.fromkeys(self.symbols.split()))
        return Secrets(self.count, self.copies, symbols, self.length, self.prompt, self.seed)

    def load(self) -> Dataset:
        """Return the other dataset with the secrets at the end of its training examples.

        Raises:
            FedpeftError: the other dataset can't be loaded, or secrets can't be planted in it.
        """
        whole = DATASETS.build(self.of).load()
        secrets = self.secrets
        if secrets.space < self.count:
            raise DataError(
                f"FP3264 {self.count} secrets are asked for, and {self.length} of {len(secrets.symbols)} symbols make "
                f"{secrets.space}; give more symbols or a larger length"
            )
        if whole.tasks is not None:
            raise DataError("FP3265 secrets can't be planted in a sequence of tasks; choose one of its datasets")
        train, held = split_off_validation(whole)
        task, template = whole.task.partition("(")[0], whole.template or self.template
        texts = [secret.pack_row(task, template) for secret in secrets.list_secrets() for _ in range(self.copies)]
        owners = None
        if train.owners is not None:
            drawn = seeds.create_generator(self.seed, "owners of secrets").integers(len(train), size=self.count)
            owners = np.repeat(train.owners[drawn], self.copies)
        note = f"{self.count} generated secrets are planted, each in {self.copies} training examples"
        return dataclasses.replace(
            whole, train=join_rows(train, Rows(texts, None, owners)), validation=held, notes=(*whole.notes, note)
        )


part = Planted

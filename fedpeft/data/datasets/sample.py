"""A sample of another dataset's examples: for previews (`--quick`) and tests.

The sample is stratified over labels, or over owners if there are no labels, as a held-out validation set is. It always
contains the same examples. Results on a sample do not hold for the dataset; summaries are marked accordingly.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fedpeft.data.dataset_of_another import DatasetOfAnother
from fedpeft.data.rows import Dataset, limit_rows
from fedpeft.parts import setting
from fedpeft.parts.families import DATASETS


@dataclass(frozen=True)
class Sample(DatasetOfAnother):
    """Fewer examples of another dataset."""

    of: str = setting(
        dataclasses.MISSING, "the other dataset in quotes, such as 'reuters_r8' or 'file:PATH'", nested=DATASETS
    )
    rows: int = setting(1000, "training examples, including those held out for validation", low=4)
    test_rows: int = setting(500, "test examples", low=1)

    def load(self) -> Dataset:
        """Return the sample, marked as `sampled`; a split that has fewer examples stays whole.

        Raises:
            FedpeftError: the other dataset can't be loaded, or more classes exist than examples were requested.
        """
        whole = DATASETS.build(self.of).load()
        train, test = limit_rows(whole.train, self.rows), limit_rows(whole.test, self.test_rows)
        raters = whole.raters if len(test) == len(whole.test) else None
        return dataclasses.replace(whole, train=train, test=test, raters=raters, sampled=True)


part = Sample

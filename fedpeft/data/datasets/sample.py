"""A sample of another data set's examples: for previews (`--quick`) and tests.

Stratified over labels, or over owners where there are no labels, as validation rows are; always the same rows. Figures
of a sample are no results of the data set: summaries say that they are of one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fedpeft.data.rows import (
    DATASETS,
    Dataset,
    get_default_head,
    get_default_partition,
    get_template,
    is_task_in_rows,
    limit_rows,
)
from fedpeft.data.user_rows import get_text_column
from fedpeft.parts import setting


@dataclass(frozen=True)
class Sample:
    """Fewer rows of another data set."""

    of: str = setting(dataclasses.MISSING, "its text in quotes, such as 'reuters_r8' or 'file:PATH'", nested=DATASETS)
    rows: int = setting(1000, "training examples, those for validation among them", low=4)
    test_rows: int = setting(500, "test examples", low=1)

    @property
    def suited_partition(self) -> str | None:
        """The other data set's."""
        return get_default_partition(self.of)

    @property
    def suited_head(self) -> str | None:
        """The other data set's."""
        return get_default_head(self.of)

    @property
    def template(self) -> str | None:
        """The other data set's."""
        return get_template(self.of)

    @property
    def text(self) -> str:
        """The other data set's."""
        return get_text_column(self.of)

    @property
    def task_in_rows(self) -> bool:
        """The other data set's."""
        return is_task_in_rows(self.of)

    def load(self) -> Dataset:
        """The other data set, `sampled`; a part with fewer rows than are asked for stays whole.

        Raises:
            FedpeftError: as of the other data set; or there are too few rows beyond one of each class.
        """
        whole = DATASETS.build(self.of).load()
        train, test = limit_rows(whole.train, self.rows), limit_rows(whole.test, self.test_rows)
        raters = whole.raters if len(test) == len(whole.test) else None
        return dataclasses.replace(whole, train=train, test=test, raters=raters, sampled=True)


part = Sample

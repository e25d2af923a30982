"""A sample of another dataset's examples: for previews (`--quick`) and tests.

The sample is stratified over labels, or over owners if there are no labels, as a held-out validation set is. It always
contains the same examples. Results on a sample do not hold for the dataset; summaries are marked accordingly.
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
    """Fewer examples of another dataset."""

    of: str = setting(
        dataclasses.MISSING, "the other dataset in quotes, such as 'reuters_r8' or 'file:PATH'", nested=DATASETS
    )
    rows: int = setting(1000, "training examples, including those held out for validation", low=4)
    test_rows: int = setting(500, "test examples", low=1)

    @property
    def suited_partition(self) -> str | None:
        """The other dataset's default partition."""
        return get_default_partition(self.of)

    @property
    def suited_head(self) -> str | None:
        """The other dataset's default start of the head."""
        return get_default_head(self.of)

    @property
    def template(self) -> str | None:
        """The other dataset's prompt template."""
        return get_template(self.of)

    @property
    def text(self) -> str:
        """The other dataset's text column."""
        return get_text_column(self.of)

    @property
    def task_in_rows(self) -> bool:
        """Whether only the other dataset's examples determine the task."""
        return is_task_in_rows(self.of)

    @property
    def has_tasks(self) -> bool:
        """Whether the other dataset has tasks of continual learning."""
        return bool(getattr(DATASETS.build(self.of), "has_tasks", False))

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

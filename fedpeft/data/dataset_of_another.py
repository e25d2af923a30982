"""Base class of datasets that change the examples of another one, and take over its properties."""

from __future__ import annotations

from fedpeft.data.abilities import NamesFiles, ReadsClips
from fedpeft.data.rows import get_default_head, get_default_partition, get_template, has_tasks, is_task_in_rows
from fedpeft.data.user_rows import get_text_column
from fedpeft.parts.families import DATASETS


class DatasetOfAnother:
    """A dataset whose setting `of` is the other dataset's text."""

    of: str

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
        return has_tasks(DATASETS.build(self.of))

    def list_files(self) -> tuple[str, ...]:
        """Return the paths of the files or folders that the other dataset reads."""
        other = DATASETS.build(self.of)
        return other.list_files() if isinstance(other, NamesFiles) else ()

    def count_frames(self) -> int:
        """Return the number of frames of the other dataset's clips; 0: it has none."""
        other = DATASETS.build(self.of)
        return other.count_frames() if isinstance(other, ReadsClips) else 0

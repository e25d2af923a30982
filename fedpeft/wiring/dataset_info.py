"""Information about the data that a setup needs instead of the data."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.data.rows import Dataset
from fedpeft.data.task_sequence import TaskSequence


@dataclass(frozen=True)
class DatasetInfo:
    """Information about the data of a run.

    Attributes:
        kind: "text" or "image".
        task: text of the task, a part of `fedpeft.parts.families.TASKS`.
        label_names: one per class, in order; None: language modeling.
        default_model: the model that `auto` stands for.
        clients: number of clients, at least 1.
        judged: whether the server has validation examples that may decide about a run.
        tasks: the tasks of continual learning; None: there is one task.
        template: the template of questions (`fedpeft.data.rows.Dataset`).
    """

    kind: str
    task: str
    label_names: tuple[str, ...] | None
    default_model: str
    clients: int
    judged: bool = False
    tasks: TaskSequence | None = None
    template: str | None = None

    @classmethod
    def from_dataset(cls, dataset: Dataset, clients: int, judged: bool) -> DatasetInfo:
        """Return the information about a dataset on `clients` clients."""
        names, model = dataset.label_names, dataset.default_model
        return cls(dataset.kind, dataset.task, names, model, clients, judged, dataset.tasks, dataset.template)

    @property
    def classes(self) -> int:
        """Number of classes; 0: language modeling."""
        return len(self.label_names or ())

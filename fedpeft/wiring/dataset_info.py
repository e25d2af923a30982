"""What a setup needs to know of the data, without having them."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.data.rows import Dataset
from fedpeft.data.task_sequence import TaskSequence


@dataclass(frozen=True)
class DatasetInfo:
    """What a setup needs to know of the data.

    Attributes:
        kind: "text" or "image".
        task: what is learned: a name out of `fedpeft.models.task.TASKS`.
        label_names: one per class, in order; None: language modelling.
        default_model: what the model `auto` stands for.
        clients: how many there are, at least 1.
        judged: whether the server has validation rows that may decide about a run.
        tasks: that are met one after the other; None: there is one.
        template: how questions are put (`fedpeft.data.rows.Dataset`).
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
        """Those of a data set that lies on `clients` clients."""
        names, model = dataset.label_names, dataset.default_model
        return cls(dataset.kind, dataset.task, names, model, clients, judged, dataset.tasks, dataset.template)

    @property
    def classes(self) -> int:
        """Number of classes; 0: language modelling."""
        return len(self.label_names or ())

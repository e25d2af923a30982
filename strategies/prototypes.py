"""Prototypes: a head of class sums of features, computed task by task and never trained.

    S_y = sum of the features of class y over all clients' examples      asked when its task begins and when it ends
    head = nearest mean of all classes met so far (`head=centroids`), or ridge regression (`head=ridge`)

Local steps fit the adapter to a fixed head, and its updates are averaged as in FedIT. Sums add up over clients and
tasks, so the head is the same for any partition, and later classes do not displace earlier ones. Only the adapter
drifts. When a task begins, its sums are those of the present features; when it ends, they are computed again. Sums of
earlier tasks stay those of their own end. The idea, over a sequence of tasks, comes from: FedNCM, arXiv 2306.03937, and
Fed3R, arXiv 2406.01116. PILoRA, arXiv 2401.02094, averages prototypes by their distances instead.

Use it for continual classification: it was the most accurate rule in `experiments/continual`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from fedpeft.aggregation.abilities import Moment
from fedpeft.aggregation.head_start import convert_to_summands
from fedpeft.aggregation.task_rules import TaskBoundary, TaskStrategy
from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.parts.families import HEADS
from fedpeft.peft.adapter import AdapterShape, Layout, State

FINISHED = "finished/"
"""Prefix of the names of the sums of earlier tasks."""

UNMET = -4.0
"""Bias of a class that nobody has met, in units of the head's scale, below the logits of all other classes."""


@dataclass(frozen=True)
class Prototypes(TaskStrategy):
    """A head of class sums, and the mean of the adapters."""

    head: str = setting("centroids", "head that is computed from the sums", choices=("centroids", "ridge"))

    needs_lora: ClassVar[bool] = False
    makes_head: ClassVar[bool] = True

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse models without a classification head.

        Raises:
            ConfigError: the model is a language model.
        """
        super().check(layout, forms)
        if "head.weight" not in layout.by_name:
            raise ConfigError("FP1494 prototypes needs classes, which a language model lacks; use o_lora or inf_lora")

    def list_trained(self, layout: Layout, round_number: int) -> frozenset[str]:
        """Return all names but those of the head."""
        return frozenset(t.name for t in layout.tensors if t.role != "head")

    def choose_question(self, moment: Moment, layout: Layout) -> str:
        """Ask for class sums when a task begins and when it ends."""
        return "" if moment == "train" else f"class_sums(head={self.head}, width={layout.shapes['head.weight'][1]})"

    def cross_boundary(self, boundary: TaskBoundary) -> tuple[State, State]:
        """Return the state with the head of all classes met so far, and the sums of finished tasks."""
        classes, width = boundary.layout.shapes["head.weight"]
        head: Any = HEADS.build(self.head)
        now = convert_to_summands(head, boundary.sums)
        before = {name.removeprefix(FINISHED): t for name, t in boundary.memory.items() if name.startswith(FINISHED)}
        total = {name: tensor + before[name] if name in before else tensor for name, tensor in now.items()}
        solved = head.solve(total, width, classes)
        solved["head.bias"][head.class_counts(total) < 0.5] = UNMET * head.scale
        state = boundary.state | {name: tensor.to(boundary.state[name].dtype) for name, tensor in solved.items()}
        if boundary.moment == "end":
            return state, {FINISHED + name: tensor for name, tensor in total.items()}
        kept = {FINISHED + name: tensor for name, tensor in before.items()}
        return state, kept


part = Prototypes

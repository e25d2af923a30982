"""Places where simulated clients run, and executors that train them.

--grid "cohort(executor=sequential)"        processes of this machine, clients one by one
--grid "ray(address=auto)"                  actors of a Ray cluster
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.parts import setting

EXECUTORS = ("batched", "sequential")


@dataclass(frozen=True, kw_only=True)
class SimulationGrid:
    """Settings of the place where simulated clients run; `fedpeft.clients` has the pools of workers.

    Subclasses are frozen dataclasses, whose fields are the user's settings.
    """

    executor: str = setting("batched", "how clients are trained: many in one pass, or one by one", choices=EXECUTORS)

    @property
    def cluster(self) -> str | None:
        """Address of the Ray cluster; empty: one that is started here; None: processes of this machine."""
        return None

    @property
    def spreads(self) -> bool:
        """Whether one base lies on all GPUs (`fedpeft.models.spread`)."""
        return False

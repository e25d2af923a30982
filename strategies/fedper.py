"""FedPer: some layers stay with each client, and the others are averaged (Arivazhagan et al., arXiv 1912.00818).

    shared: x <- x + sum_k p_k delta_k;   private: x_k, trained in the same steps, never leaves client k

The paper keeps the last layers private, which is the head here. `private_layers` selects other modules by the ends of
their names. With the PEFT method adapter_fusion, ('query', 'key', 'value') gives each client a fusion of its own. All
clients start from the same values. They are evaluated with their private layers; the global state keeps the start.

Use it if the head, or other layers, should stay with each client.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.errors import ConfigError
from fedpeft.parts import setting
from fedpeft.peft.adapter import AdapterShape, Layout


@dataclass(frozen=True)
class FedPer(LinearStrategy):
    """The mean of all layers that are not private."""

    private_layers: str | tuple[str, ...] = setting(
        "head", "which modules stay with clients, by the ends of their names"
    )

    needs_lora: ClassVar[bool] = False
    arrives_whole: ClassVar[bool] = False
    preserves = ("all ranks",)

    def check(self, layout: Layout, forms: Iterable[AdapterShape | None]) -> None:
        """Refuse a name that no module has, and settings that share no tensor.

        Raises:
            ConfigError: names the existing modules.
        """
        super().check(layout, forms)
        names = sorted({_get_module(name).rpartition(".")[2] for name in layout.names})
        for ending in self._endings:
            if not any(_has_ending(name, ending) for name in layout.names):
                raise ConfigError(f"FP1490 no trained module's name ends with {ending!r}; there are {', '.join(names)}")
        if len(self.list_private(layout)) == len(layout.names):
            raise ConfigError(
                "FP1491 fedper would keep all tensors private, and nothing would be federated; name fewer"
            )

    @property
    def _endings(self) -> tuple[str, ...]:
        given = self.private_layers
        return (given,) if isinstance(given, str) else given

    def list_private(self, layout: Layout) -> frozenset[str]:
        """Return the names of the tensors of `private_layers`."""
        return frozenset(n for n in layout.names if any(_has_ending(n, ending) for ending in self._endings))


def _get_module(name: str) -> str:
    return name.rpartition(".")[0]


def _has_ending(name: str, ending: str) -> bool:
    return f".{_get_module(name)}".endswith(f".{ending}")


part = FedPer

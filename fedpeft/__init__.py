"""fedpeft: federated fine-tuning of large pretrained models with PEFT adapters.

`strategies/` and `clients/` stand at the top level of a checkout; their one import name is
`fedpeft.strategies` and `fedpeft.clients`, in a checkout, an editable install and a wheel alike.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.machine import startup

if TYPE_CHECKING:
    from fedpeft.api import Run, open_run, run_simulation, run_study
    from fedpeft.deployment.client.hugging_face import patch
    from fedpeft.errors import FedpeftError
    from fedpeft.wiring.config import RunConfig

__version__ = "0.3.0"

__all__ = ["FedpeftError", "Run", "RunConfig", "open_run", "patch", "run_simulation", "run_study"]
"""What is promised to stay; imported on first use, so that `import fedpeft` is light."""

_PLACES = {
    "FedpeftError": "fedpeft.errors",
    "RunConfig": "fedpeft.wiring.config",
    "patch": "fedpeft.deployment.client.hugging_face",
}

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it misses a package for GPUs

if (_command := startup.find_command()) is not None:
    startup.refuse_windows()
    startup.refuse_missing_extra(_command)
    startup.handle_signals()

_here = Path(__file__).resolve().parent
if not (_here / "strategies").is_dir():  # a checkout: they stand beside fedpeft/; a wheel holds them inside it
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    """Return a public name, imported from its module."""
    if name not in __all__:
        raise AttributeError(f"module 'fedpeft' has no attribute {name!r}")
    import sys
    from importlib import import_module

    if sys.platform == "win32":
        raise ImportError(startup.USE_WSL)
    return getattr(import_module(_PLACES.get(name, "fedpeft.api")), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *__all__])

"""fedpeft: federated fine-tuning of large pretrained models with PEFT adapters.

`strategies/` and `clients/` stand at the top level of a checkout; their one import name is
`fedpeft.strategies` and `fedpeft.clients`, in a checkout, an editable install and a wheel alike.
"""

import logging
from pathlib import Path

__version__ = "0.2.0"

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it misses a package for GPUs

_here = Path(__file__).resolve().parent
if not (_here / "strategies").is_dir():  # a checkout: they stand beside fedpeft/; a wheel holds them inside it
    __path__.append(str(_here.parent))

"""How large an attack is: the full size of the long tier, or the share of it that FEDPEFT_ATTACK_SHARE says.

    python -m pytest tests/*/attacks -m long                                  all of it, for hours
    FEDPEFT_ATTACK_SHARE=0.01 python -m pytest tests/*/attacks -m long        a hundredth, but at least one of each

All is drawn from FEDPEFT_ATTACK_SEED (0 if it is not given).
"""

from __future__ import annotations

import os

from fedpeft.wiring.config import RunConfig

SEED = int(os.environ.get("FEDPEFT_ATTACK_SEED", "0"))
SHARE = float(os.environ.get("FEDPEFT_ATTACK_SHARE", "1"))


def scaled(full: int) -> int:
    """Return the current share of `full`, at least 1."""
    return max(1, round(SHARE * full))


SMALL = {"dataset": "tiny", "tokens": 16, "clients": 4, "cohort": 2, "rounds": 6, "workers": 1, "dtype": "fp32",
         "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "head": "zero", "measure": "validation(every=100)",
         "learning_rate": 3e-3}  # fmt: skip
"""A run of seconds."""

SETUPS = {
    "plain": {},
    "dp_sgd": {"privacy": "dp_sgd(noise_multiplier=1.5, test_noise=True)", "optimizer": "sgd"},
    "user_dp": {"privacy": "user_dp(noise_multiplier=1.5, test_noise=True)", "optimizer": "sgd"},
    "ef14 | tiny": {"codec": "ef14 | tiny"},
    "flora with mixed ranks": {"strategy": "flora", "ranks": "1*2,2*2"},
    "scaffold": {"drift": "scaffold", "optimizer": "sgd"},
}
"""What is killed, beside a study and real clients."""


def configuration(setup: str, **more: object) -> RunConfig:
    """Return the settings of a set-up; only this function of the attacks names settings."""
    return RunConfig(**{**SMALL, **SETUPS[setup], **more})

"""Mistakes in flags are told before torch is imported, and before a row or a model is read."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "flwr", "scipy", "sklearn")

BEFORE_TORCH = [
    (["--cohort", "1.5"], "cohort=1.5 is neither a fraction"),
    (["--cohort", "101"], "to the number of clients (100)"),
    (["--cohort", "nobody"], "cohort=nobody is neither"),
    (["--cohort", "eafl(size=-1)"], "must be"),
    (["--clients", "10", "--cohort", "2", "--privacy", "secure_sum"], "the updates of 3 clients or more"),
    (["--clients", "10", "--privacy", "secure_sum(bits=8)"], "3 clients or more; the cohort has 1"),
    (["--seed", "-1"], "seed must be at least 0"),
    (["--seed", str(2**64)], "seed must be at least 0 and at most 1.84467e+19"),
    (["--rounds", "0"], "rounds must be at least 1"),
    (["--tokens", "3"], "tokens must be at least 4"),
    (["--learning-rate", "nan"], "learning_rate must be"),
    (["--strategy", "fedavgg"], "unknown strategy 'fedavgg'; did you mean"),
    (["--strategy", "FedAvg"], "the mean that FedAvg takes is the strategy fedit"),
    (["--drift", "scaffold + fedproxx"], "unknown drift correction 'fedproxx'; did you mean 'fedprox'?"),
    (["--privacy", "dp_sdg(epsilon=8)"], "unknown privacy mechanism 'dp_sdg'; did you mean 'dp_sgd'?"),
    (["--head", "rigde"], "unknown head"),
    (["--optimizer", "adamm"], "unknown local optimizer"),
    (["--server-optimizer", "adamm"], "unknown server optimizer"),
    (["--safeguard", "und"], "unknown safeguard"),
    (["--attack", "sign_flop"], "unknown attack"),
    (["--partition", "dirichlett"], "unknown partition"),
    (["--local-work", "epoch(1)"], "unknown amount of local work"),
    (["--grid", "rai"], "unknown grid"),
    (["--measure", "validatoin"], "unknown measurement"),
    (["--strategy", "fedit("], "fedit("),
]
"""Flags, and what is said of them."""

PROGRAM = """
import sys
from fedpeft.simulate import main
code = main(sys.argv[1:])
print("loaded:", [name for name in {heavy} if name in sys.modules])
sys.exit(code)
"""


@pytest.mark.medium
@pytest.mark.parametrize(("flags", "sentence"), BEFORE_TORCH)
def test_a_mistake_is_told_before_torch_is_imported(flags, sentence, tmp_path):
    words = [*flags, "--output", str(tmp_path / "run")]
    program = PROGRAM.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip().endswith("loaded: []")
    assert not (tmp_path / "run").exists()

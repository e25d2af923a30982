"""Mistakes in flags are told before torch is imported, and before a row or a model is read."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fedpeft.clients.attack import ATTACKS

from fedpeft.config import RunConfig
from fedpeft.errors import FedpeftError
from fedpeft.privacy.secure_sum.sum import SUMS
from fedpeft.run import catalogue, early
from fedpeft.simulation import rows, simulation

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

BEFORE_ROWS = [
    (["--privacy", "dp_sgd(epsilon=-1)"], "epsilon must be"),
    (["--privacy", "dp_sgd(epsilon=8, dp_delta=1.5)"], "dp_delta must be"),
    (["--privacy", "secure_sum(bits=99)", "--cohort", "10"], "bits must be"),
    (["--peft", "lorra"], "unknown PEFT method 'lorra'"),
    (["--peft", "lora(rank=0)"], "rank must be"),
    (["--codec", "fp23"], "fp23"),
    (["--optimizer", "adamw(warmup=-1)"], "warmup must be"),
    (["--attack", "sign_flip(fraction=2)"], "fraction must be"),
]
"""Settings of parts, whose classes need torch: no row and no model is read for them."""

PROGRAM = """
import sys
from fedpeft.simulate import main
code = main(sys.argv[1:])
print("loaded:", [name for name in {heavy} if name in sys.modules])
sys.exit(code)
"""


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


@pytest.mark.parametrize(("flags", "sentence"), BEFORE_ROWS)
def test_a_mistake_is_told_before_a_row_is_read(flags, sentence, tmp_path, monkeypatch, capfd):
    from fedpeft.simulate import main

    read: list[object] = []
    for owner in (rows, simulation):
        for name in ("load_dataset", "resolve_model"):
            monkeypatch.setattr(owner, name, lambda *given: read.append(given), raising=False)
    assert main([*flags, "--output", str(tmp_path / "run")]) == 2
    assert sentence in capfd.readouterr().err
    assert not read
    assert not (tmp_path / "run").exists()


def test_names_are_looked_up_where_the_families_are():
    """A rule: what is looked at early is the first of a flag's families, or the only one."""
    for name, family in early.NAMES.items():
        whole = catalogue.FLAGS[name.replace("_", "-")].families[0]
        assert (family.package, family.noun, family.group) == (whole.package, whole.noun, whole.group)
        assert family.elsewhere == whole.elsewhere
        assert not whole.reserved
    assert (early.SUMS.package, early.SUMS.noun) == (SUMS.package, SUMS.noun)


@pytest.mark.parametrize("name", sorted(early.NAMES))
def test_every_part_by_name_is_let_through(name):
    for part in (*early.NAMES[name].names, *(early.SUMS.names if name == "privacy" else ())):
        early.check(RunConfig(**{name: part, "cohort": 10}))


def test_both_say_the_same_of_a_name():
    with pytest.raises(FedpeftError) as first:
        early.check(RunConfig(attack="sign_flop"))
    with pytest.raises(FedpeftError) as second:
        ATTACKS.build("sign_flop")
    assert str(first.value) == str(second.value)


@pytest.mark.parametrize(
    "given", [{"clients": 0, "cohort": 5}, {"clients": "profiles.toml", "cohort": 0.5}, {"cohort": "all"}, {}]
)
def test_what_only_the_data_can_tell_is_left_to_them(given):
    early.check(RunConfig(**given))

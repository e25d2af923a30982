"""Mistakes in flags are told before torch is imported, and before a row or a model is read."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from fedpeft.parts import Family, _hints
from fedpeft.run import catalogue
from fedpeft.spec import importable

HEAVY = ("torch", "transformers", "flwr", "grpc", "scipy")

WRONG = {
    "--seed": "18446744073709551616", "--cohort": "1.5", "--tokens": "3", "--privacy": "dp_sgd(epsilon=-1)",
    "--peft": "lora(rank=0)", "--codec": "topk(fraction=2)", "--strategy": "krum(selected=0)", "--model": "no_such",
    "--dataset": "no_such", "--partition": "dirichlet(alpha=0)", "--head": "ridge(strength=-1)",
    "--server-optimizer": "adam(beta1=1)", "--safeguard": "undo(rate=-1)", "--drift": "fedprox(mu=-1)",
    "--local-work": "steps(0)", "--optimizer": "adamw(warmup=-1)", "--attack": "sign_flip(fraction=2)",
    "--grid": "cohort(executor=none)", "--measure": "validation(every=0)",
}  # fmt: skip
"""A value for each flag that is out of range, or names nothing."""

MORE = [
    ("--peft", "no_such"), ("--peft", "lora(rank=4) + no_such"), ("--codec", "no_such"),
    ("--codec", "over_time(high=-9) | small"), ("--codec", "cast(dtype=fp8)"), ("--privacy", "dp_sgd(delta=2)"),
    ("--cohort", "eafl(-1)"), ("--model", "tiny(no_such=1)"), ("--dataset", "rows.csv"),
]  # fmt: skip

FAMILIES = list(dict.fromkeys(family for families in catalogue.FAMILIES.values() for family in families))
PARTS = [(family, name) for family in FAMILIES for name in family.own_names]


def told(command: str, flags: list[tuple[str, str]]) -> list[list[str]]:
    """What a process that imports nothing else has said of each flag, and the heavy modules that it has imported."""
    code = f"""if True:
        import json, sys
        from fedpeft.{command} import main
        for flag, value in {flags!r}:
            assert main([flag, value]) == 2, flag
            print(json.dumps([flag, value, *(set({HEAVY!r}) & set(sys.modules))]))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize("command", ["simulate", "serve"])
def test_no_heavy_library_is_imported_before_a_wrong_flag_is_refused(command):
    flags = [*WRONG.items(), *MORE]
    if command == "serve":
        flags = [(flag, value) for flag, value in flags if flag != "--dataset"] + [("--dataset", "no_such")]
    expected = [f'["{flag}", "{value}"]' for flag, value in flags]
    assert told(command, flags) == expected


def test_the_table_has_every_flag_of_parts():
    assert {f"--{name}" for name in catalogue.FLAGS} <= set(WRONG)


@pytest.mark.parametrize(("family", "name"), PARTS, ids=lambda value: getattr(value, "group", value))
def test_a_part_s_source_says_the_settings_of_its_class(family: Family, name: str):
    real = family.part(name)
    code = f"from fedpeft.declared import read; read({family.package!r}, {importable(name)!r})"
    assert code
    found = unimported(f"{family.package}.{importable(name)}")
    assert [f.name for f in dataclasses.fields(found)] == [f.name for f in dataclasses.fields(real)]
    for own, other in zip(dataclasses.fields(found), dataclasses.fields(real), strict=True):
        assert (own.default, own.metadata) == (other.default, other.metadata)
    assert _hints(found) == {field: hint for field, hint in _hints(real).items() if field in _hints(found)}
    for kept in ("argument", "called_elsewhere", "settled_elsewhere"):
        assert getattr(found, kept, None) == getattr(real, kept, None)

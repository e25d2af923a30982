"""Mistakes in flags are told before torch is imported, and before a row or a model is read."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fedpeft.clients.attack import ATTACKS

from fedpeft.config import RunConfig
from fedpeft.declared import UnreadableError, read
from fedpeft.errors import ConfigError, FedpeftError
from fedpeft.families import PRESETS
from fedpeft.run import catalogue, early

HEAVY = ("torch", "transformers", "flwr", "grpc", "scipy")

WRONG = {
    "--seed": "18446744073709551616", "--cohort": "1.5", "--tokens": "3", "--privacy": "dp_sgd(epsilon=-1)",
    "--peft": "lora(rank=0)", "--codec": "topk(fraction=2)", "--strategy": "krum(selected=0)", "--model": "no_such",
    "--dataset": "no_such", "--partition": "dirichlet(alpha=0)", "--head": "ridge(strength=-1)",
    "--server-optimizer": "adam(beta1=1)", "--safeguard": "undo(rate=-1)", "--drift": "fedprox(mu=-1)",
    "--local-work": "steps(0)", "--optimizer": "adamw(warmup=-1)", "--attack": "sign_flip(fraction=2)",
    "--grid": "cohort(executor=none)", "--measure": "validation(every=0)", "--hook": "no_such",
}  # fmt: skip
"""A value for each flag that is out of range, or names nothing."""

MORE = [
    ("--peft", "no_such"), ("--peft", "lora(rank=4) + no_such"), ("--codec", "no_such"),
    ("--codec", "over_time(high=-9) | small"), ("--codec", "cast(dtype=fp8)"), ("--privacy", "dp_sgd(delta=2)"),
    ("--cohort", "eafl(-1)"), ("--model", "tiny(no_such=1)"), ("--dataset", "rows.csv"),
]  # fmt: skip


def told(command: str, flags: list[tuple[str, str]]) -> list[str]:
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


COMPARED = """
import dataclasses, sys
from fedpeft.declared import KEPT, read
from fedpeft.parts import _hints
from fedpeft.run.catalogue import FAMILIES
from fedpeft.spec import importable

families = [family for families in FAMILIES.values() for family in families]
parts = [(family, name) for family in families for name in family.own_names]
found = [read(f"{family.package}.{importable(name)}", "part") for family, name in parts]
assert "torch" not in sys.modules

def told(cls):
    fields = [(f.name, f.default, f.metadata, _hints(cls)[f.name]) for f in dataclasses.fields(cls) if f.init]
    return sorted(fields, key=lambda field: field[0]), [getattr(cls, kept, None) for kept in KEPT]

for (family, name), cls in zip(parts, found):
    real = family.part(name)
    assert told(cls) == told(real), (family.noun, name)
print(len(found), sum(cls is not family.part(name) for (family, name), cls in zip(parts, found)))
"""


def test_a_part_s_source_says_the_settings_of_its_class():
    """Of all parts that a flag takes."""
    run = subprocess.run([sys.executable, "-c", COMPARED], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    parts, by_source = map(int, run.stdout.split())
    assert parts > 150
    assert by_source > 130


def test_what_only_an_import_can_tell_is_not_guessed():
    name = "_a_module_that_nobody_imports"
    with pytest.raises(UnreadableError):
        read("fedpeft.no_such_module", name)
    with pytest.raises(UnreadableError):
        read("no_such_package", name)


def test_both_say_the_same_of_a_name():
    with pytest.raises(FedpeftError) as first:
        early.check(RunConfig(attack="sign_flop"))
    with pytest.raises(FedpeftError) as second:
        ATTACKS.build("sign_flop")
    assert str(first.value) == str(second.value)


@pytest.mark.parametrize("name", sorted(name for name in catalogue.FLAGS if name not in ("dataset", "model")))
def test_what_a_flag_takes_is_let_through(name):
    for family in catalogue.FAMILIES[name]:
        for part in family.own_names:
            try:
                catalogue.FLAGS[name].built(part)
            except ConfigError:
                continue
            early.check(RunConfig(**{"clients": 0, name.replace("-", "_"): part}))


@pytest.mark.parametrize(
    "codec", [*PRESETS, "ef14 | small", "ef21(keep=1.0) | topk | sign", "by_rows | over_time | small"]
)
def test_every_codec_is_let_through(codec):
    early.check(RunConfig(codec=codec))


@pytest.mark.parametrize(
    "given", [{"clients": 0, "cohort": 5}, {"clients": "profiles.toml", "cohort": 0.5}, {"cohort": "all"}, {},
              {"model": "org/name"}, {"model": "/no/such"}, {"dataset": "hf:org/name"}, {"dataset": "file:a.csv"},
              {"drift": ""}, {"peft": "prefix"}, {"peft": "lora(rank=4) + ia3"}, {"privacy": "user_dp(noise=banded)"}]
)  # fmt: skip
def test_what_only_the_data_or_the_model_can_tell_is_left_to_them(given):
    early.check(RunConfig(**given))

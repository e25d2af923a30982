"""Mistakes in flags are told before torch is imported, and before a row or a model is read."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft import simulate
from fedpeft.__main__ import COMMANDS, find_module
from fedpeft.errors import ConfigError, FedpeftError
from fedpeft.parts.declarations import UnreadableError, read
from fedpeft.parts.families import ATTACKS, PRESETS
from fedpeft.reporting.command import OTHER_NAMES
from fedpeft.wiring import catalogue, early_checks
from fedpeft.wiring.config import RunConfig
from tests.refusals import has_error

HEAVY = ("torch", "transformers", "flwr", "grpc", "scipy", "datasets", "pandas", "pyarrow")

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
    ("--downlink", "no_such"), ("--downlink", "grid(bits=-1)"), ("--downlink", "ef14 | small"), ("--ranks", "4x50"),
    ("--ranks", "4*50"), ("--ranks", "0*100"), ("--ranks", "auto"), ("--clients", "no_such"),
    ("--privacy", "user_dp(noise=no_such)"), ("--privacy", "user_dp(noise=banded(bands=-1))"),
    ("--server-optimizer", "averaged(of=adam(beta1=1))"), ("--measure", "forgetting(dataset=no_such)"),
    ("--dataset", "sample(of=no_such)"), ("--dataset", "tasks(reviews, no_such)"),
    ("--dataset", "scenes(task=no_such)"), ("--dataset", "file(path=rows.csv, template=no_such)"),
]  # fmt: skip
"""More of them, some in a part that stands in another part's text."""

OF_COMMANDS = {
    "serve": [("--template", "no_such"), ("--template", "no_such.jinja"), ("--listen", "http://a"), ("--metrics", "a"),
              ("--health", "a:b"), ("--task", "no_such"), ("--quorum", "2"), ("--deadline", "-1")],
    "check": [("reviews", "--clients", "-1"), ("reviews", "--tokens", "3"), ("reviews", "--seed", "-1"),
              ("reviews", "--partition", "dirichlet(alpha=0)"), ("reviews", "--model", "no_such"),
              ("reviews", "--picture", "a.doc"), ("no_such",), ("no_such.csv",), ("file(path=a.csv, side=3)",)],
    "study": [("study.toml", "--jobs", "-1"), ("study.toml", "--preset", "no_such"),
              ("study.toml", "--track", "no_such"), ("study.toml", "--plugin", "no_such"),
              ("study.toml",), ("axis.toml",), ("no_such.toml",)],
    "tune": [("search.toml", "--workers", "0"), ("search.toml", "--trials", "-1"),
             ("search.toml", "--plugin", "no_such"), ("search.toml",), ("no_such.toml",)],
    "predict": [("run", "text", "--abstain", "2"), ("run", "text", "--new-tokens", "0"), ("run",),
                ("run", "text", "--output", "a.csv"), ("run", "text", "--data", "a.csv", "--output", "b.csv")],
    "join": [("--server", "http://a", "--data", "a.csv"),
             *(("--server", "localhost:1", "--data", "a.csv", *words) for words in (
                 ("--give-up", "-1"), ("--rank", "-1"), ("--precision", "fp8"), ("--fewest", "2"), ("--collude", "1"),
                 ("--max-delta", "2"), ("--template", "no_such"), ("--threads", "-1"), ("--plugin", "no_such")))],
    "flowertune": [("project", *words) for words in (
        ("--clients", "-1"), ("--seed", "-1"), ("--dtype", "fp8"), ("--workers", "-1"), ("--codec", "no_such"))],
}  # fmt: skip
"""Arguments that each command refuses."""

FILES = {
    "study.toml": "seeds = [0]\nbase = {cohort = 1.5}\npresets = {small = {}}\n",
    "axis.toml": 'seeds = [0]\naxes = {codec = ["fp32", "topk(fraction=2)"]}\n',
    "search.toml": "base = {cohort = 1.5}\nsearch = {learning_rate = {low = 1e-4, high = 1e-2}}\n",
}
"""Files with a value that is out of range."""


def refuse_all(command: str, cases: list[tuple[str, ...]], folder: Path) -> list[tuple[str, ...]]:
    """Return the cases after which a process that imports nothing else has imported no heavy module."""
    code = f"""if True:
        import sys
        from {find_module(command)} import main
        for case in {cases!r}:
            assert main(list(case)) == 2, case
            print([case, *(set({HEAVY!r}) & set(sys.modules))])
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=300)
    assert run.returncode == 0, run.stderr
    refused = [ast.literal_eval(line) for line in run.stdout.splitlines()]
    return [case for case, *heavy in refused if not heavy]


@pytest.mark.parametrize("command", ["simulate", *OF_COMMANDS])
def test_no_heavy_library_is_imported_before_a_wrong_flag_is_refused(command, tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    cases: list[tuple[str, ...]] = list(OF_COMMANDS.get(command, []))
    if command in ("simulate", "serve"):
        cases += [*WRONG.items(), *MORE]
    if command == "serve":  # which describes its clients' rows
        cases = [case for case in cases if case != ("--dataset", "rows.csv")]
    assert refuse_all(command, cases, tmp_path) == cases


HELP = """
import contextlib, importlib, io, os, sys
from fedpeft.__main__ import COMMANDS, find_module

for name in COMMANDS:
    if os.fork():
        os.wait()
        continue
    sys.argv = [name, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as page:
        importlib.import_module(find_module(name)).main()
    assert "usage" in page.getvalue().lower(), name
    print([name, *sorted({"torch", "transformers", "peft", "flwr"} & set(sys.modules))], flush=True)
    os._exit(0)
"""


def test_a_page_of_help_comes_before_the_libraries():
    run = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=300)
    shown = [ast.literal_eval(line) for line in run.stdout.splitlines()]
    assert [name for name, *_ in shown] == list(COMMANDS), run.stderr
    assert not [name for name, *heavy in shown if heavy]


def test_the_table_has_every_flag_of_parts():
    assert {f"--{name}" for name in catalogue.FLAGS} <= set(WRONG)


COMPARED = """
import dataclasses, sys
from fedpeft.parts.declarations import KEPT, read
from fedpeft.parts.part import _get_hints
from fedpeft.parts.spec import make_importable
from fedpeft.wiring.catalogue import FAMILIES

families = [family for families in FAMILIES.values() for family in families]
parts = [(family, name) for family in families for name in family.own_names]
found = [read(f"{family.package}.{make_importable(name)}", "part") for family, name in parts]
assert "torch" not in sys.modules

def told(cls):
    fields = [
        (
            f.name,
            f.default,
            f.metadata | {"check": getattr(f.metadata["check"], "__name__", None)},
            _get_hints(cls)[f.name],
        )
        for f in dataclasses.fields(cls)
        if f.init
    ]
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
        early_checks.check(RunConfig(attack="sign_flop"))
    with pytest.raises(FedpeftError) as second:
        ATTACKS.build("sign_flop")
    assert str(first.value) == str(second.value)


def test_a_flag_with_another_name_elsewhere_is_named(capsys):
    for other, here in OTHER_NAMES.items():
        for words in ([other, "3"], [f"{other}=3"], [f"--{other[2:].replace('-', '_')}", "3"]):
            assert simulate.main(words) == 2
            assert has_error(capsys.readouterr().err, "FP1989", other, here)
        simulate.parse(shlex.split(here.partition(" for ")[0]))


@pytest.mark.parametrize("name", sorted(name for name in catalogue.FLAGS if name not in ("dataset", "model")))
def test_what_a_flag_takes_is_let_through(name):
    for family in catalogue.FAMILIES[name]:
        for part in family.own_names:
            try:
                catalogue.FLAGS[name].parse_value(part)
            except ConfigError:
                continue
            early_checks.check(RunConfig(**{"clients": 0, name.replace("-", "_"): part}))


@pytest.mark.parametrize(
    "codec", [*PRESETS, "ef14 | small", "ef21(keep=1.0) | topk | sign", "by_rows | over_time | small"]
)
def test_every_codec_is_let_through(codec):
    early_checks.check(RunConfig(codec=codec))


@pytest.mark.parametrize(
    "given", [{"clients": 0, "cohort": 5}, {"cohort": "all"}, {},
              {"model": "org/name"}, {"model": "/no/such"}, {"dataset": "hf:org/name"}, {"dataset": "file:a.csv"},
              {"drift": ""}, {"peft": "prefix"}, {"peft": "lora(rank=4) + ia3"}, {"privacy": "user_dp(noise=banded)"}]
)  # fmt: skip
def test_what_only_the_data_or_the_model_can_tell_is_left_to_them(given):
    early_checks.check(RunConfig(**given))


def test_the_help_page_loads_neither_checks_nor_measurements():
    late = {"fedpeft.wiring.early_checks", "fedpeft.wiring.measurements", "fedpeft.machine.cache", "multiprocessing"}
    code = f"import sys, fedpeft.simulate; print(sorted({late!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Every command of README.md and docs/ works as it stands, in the environment that the text before it has made.

Each document is read from top to bottom in a folder with the files of the repository, and its commands run one after
another. Nothing is installed: packages of an extra can't be imported before the text has asked for that extra. What is
run otherwise than it is written is listed in `OVERRIDES`, `NOT_RUN` and `COMPANIONS`, each with its reason.
"""

from __future__ import annotations

import csv
import re
import runpy
import tomllib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedpeft.errors import AssetError
from tests.unit.test_readme import join_lines

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SHORT = '--rounds 1 --tokens 32 --workers 1 --local-work "steps(2)"'

TINY_FOLDER = """python -c 'from fedpeft.models.base_model import resolve_model; print(resolve_model("tiny"))'"""

OVERRIDES = [
    (r"^(fedpeft (?:simulate|serve) (?!--help|--resume).*)$", rf"\1 {SHORT}",
     "README, docs/deploy.md: each takes minutes, and these flags make any of them short"),
    (r"(recipes/continual.*) --rounds 1 ", r"\1 --rounds 8 ", "docs/recipes.md: each task has rounds of its own"),
    (r"(recipes/private_hospital.*) --local-work \"steps\(2\)\"", r"\1", "docs/recipes.md: a round is one step there"),
    (r"(recipes/chat.*) --tokens 32", r'\1 --dataset "office(rows=2, test_rows=1)" --tokens 96',
     "docs/recipes.md: its rows and the default language model take minutes, and answers begin behind the 32nd token"),
    (r"(recipes/images.*)", r'\1 --dataset "fashion_mnist(rows=1000, test_rows=100)"',
     "docs/recipes.md: the default image model takes minutes"),
    (r"^(.*tasks\(.*) --rounds 1 ", r"\1 --rounds 8 ", "docs/continual.md: each task has rounds of its own"),
    (r"^(fedpeft simulate (?=.*shakespeare).*)$", r"\1 --model tiny_lm",
     "README: a step of the default language model takes seconds"),
    (r"^(fedpeft simulate .*fedllm_bench.*) --tokens 32(.*)$", r"\1 --tokens 64\2 --model tiny_lm",
     "docs/data.md: the same, and answers begin behind the 32nd token"),
    (r'(distributed_dp(?!.*unit=clients).*) --local-work "steps\(2\)"', r"\1",
     "docs/deploy-sums.md: a round is one step there"),
    (r"(conversations.*) --tokens 32", r"\1 --tokens 64", "README: their answers begin behind the 32nd token"),
    (r"(--task instruction.*) --tokens 32", r"\1", "docs/deploy-tasks.md: the same"),
    (r"(code_repair)\((.*)\)(.*) --tokens 32", r"\1(characters=120, package_rows=10)\3 --tokens 192",
     "docs/code-tasks.md: its rows take minutes, and answers begin behind the 32nd token"),
    (r"^(fedpeft evaluate .*--run-code)", r"\1 --rows 2", "docs/code-tasks.md: its answers take minutes"),
    (r"office\(rows=200\)(.*) --tokens 32", r"office(rows=2, test_rows=1)\1 --tokens 96",
     "README: its rows and the default language model take minutes, and answers begin behind the 32nd token"),
    (r"((?:legalbench|medqa|arithmetic).*) --tokens 32", r"\1",
     "docs/data-benchmarks.md: their answers begin behind the 32nd token"),
    (r"rows=6000, test_rows=2000", "rows=1000, test_rows=100", "README: the default image model takes minutes"),
    (r"^(fedpeft simulate .*patch_labels.*)layers=4(.*)$", r"\1layers=2\2 --model tiny_vision",
     "docs/patches.md: DINOv2 takes minutes, and the tiny model has three blocks"),
    (r"^(fedpeft simulate (?!.*(?:captions|patch_labels)).*scenes.*)$",
     r"\1 --model 'towers(image=tiny_vision, text=tiny)'", "docs/pairs.md: the default towers take minutes"),
    (r"^(fedpeft simulate .*captions.*)$", r"\1 --model 'towers(image=tiny_vision, text=tiny_lm)'",
     "docs/captions.md: the default towers take minutes"),
    (r"^(fedpeft predict runs/captions .*)$", r"\1 --new-tokens 8", "docs/captions.md: of so short a model"),
    (rf"^(fedpeft simulate (?!--quick {re.escape(SHORT)}$)"
     r"(?!.*(?:--model|fashion_mnist|conversations|office|tiny_seq2seq|tiny_lm|legalbench|medqa|arithmetic)).*)$",
     r"\1 --model tiny",
     "README: the default text model takes minutes; the first command and those that name it have it"),
    (r"(distributed_dp.*) --local-work \"steps\(2\)\"", r"\1", "README, docs/privacy*.md: it takes one step a round"),
    (r"^python -m pytest -n 2$", "python -m pytest -n 2 tests/unit/test_parts.py",
     "docs/install.md: the fast tier takes minutes"),
    (r"^(FEDPEFT_ATTACK_SHARE=\S+ )?(python -m pytest tests/\*/attacks -m long).*$", r"\2 --collect-only -q",
     "docs/reliability.md: all of it, for hours"),
    (r"^(python examples/minimal\.py .*)$", rf'\1 --model "$({TINY_FOLDER})"',
     "docs/round.md: the default model is fetched from the hub"),
    (r"fl\.example\.org", "localhost", "no such machine: README and docs/deploy*.md have it stand for the server"),
    (r'^(flwr run .*--run-config ")(.*)"$', r"\1\2 dataset='tiny' tokens=32 local-work='steps(2)' dtype='fp32'" + '"',
     "docs/flower-app.md: half a minute a round where nodes start a process for every message"),
]  # fmt: skip
"""Regular expression, what the command is instead, and why."""

NOT_RUN = {
    'fedpeft simulate --clients 100 --grid "ray(address=auto)"': "needs a running Ray cluster",
    "fedpeft serve --resume runs/first --readmit edge-2": "needs a client that was dropped, and whose cause "
    "was mended: tests/unit/deployment/test_hostile_clients.py",
}
"""Commands that need what no text makes."""
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def blocks(document: Path) -> list[list[str]]:
    """Return the lines of each block of commands, Flower's included, which are not fedpeft's; files are left out."""
    text = join_lines(document.read_text(encoding="utf-8"))
    found = re.findall(r"^```(bash|text)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [(kind, [line for line in block.splitlines() if line]) for kind, block in found]
    flower = ("export FLWR", "flwr run . --stream")
    return [block for kind, block in lines if kind == "bash" or block[0].startswith(flower)]


def test_what_is_not_run_as_written_is_written_somewhere():
    written = [line for document in DOCUMENTS for block in blocks(document) for line in block]
    assert set(NOT_RUN) <= set(written)
    for pattern, other, why in OVERRIDES:
        assert any(re.search(pattern, line) for line in written), why
        written = [re.sub(pattern, other, line) for line in written]


def test_servers_say_where_they_listen():
    """Without, they listen to this machine only, and the clients of the next line are on others."""
    written = [line for document in DOCUMENTS for block in blocks(document) for line in block]
    servers = [line for line in written if "fedpeft serve" in line and "--resume" not in line]
    assert servers
    assert [line for line in servers if "--listen" not in line] == []


def test_files_that_commands_name_are_in_the_repository():
    for document in DOCUMENTS:
        for path in re.findall(
            r"(?<![\w/])(?:examples|experiments)/[\w/]+\.\w+", "\n".join("\n".join(block) for block in blocks(document))
        ):
            assert (ROOT / path).is_file(), path


@pytest.fixture
def make() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "make.py")))


def test_the_example_files_are_what_their_script_makes(make: SimpleNamespace, tmp_path: Path) -> None:
    make.write_generated(tmp_path)
    make.write_diabetes(tmp_path)
    names = (
        *("shops.csv", "rooms.csv", "diabetes.csv", "conversations.jsonl", "instructions.jsonl"),
        *("office_choices.jsonl", "next_words.jsonl"),
    )
    layouts = [file.relative_to(tmp_path) for file in tmp_path.rglob("*.json")]
    assert len(layouts) == 3
    for name in (*names, *layouts):
        assert (tmp_path / name).read_bytes() == (ROOT / "examples" / name).read_bytes()


@pytest.mark.medium
def test_the_functions_are_those_of_the_pinned_packages(make: SimpleNamespace, tmp_path: Path) -> None:
    try:
        for package in make.OWNERS:
            package.asset.fetch()
    except AssetError as error:
        pytest.skip(f"a package is neither in the cache nor reachable: {error}")
    make.write_functions(tmp_path)
    assert (tmp_path / "functions.csv").read_bytes() == (ROOT / "examples" / "functions.csv").read_bytes()


def test_no_example_function_gives_the_label_of_another(make: SimpleNamespace) -> None:
    with (ROOT / "examples" / "functions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for part in (0, 2):  # names and descriptions
        parts = [(row["owner"], row["text"].partition(": ")[part]) for row in rows]
        assert len(set(parts)) == len(rows)
    assert {owner.name for owner in make.OWNERS} == {row["owner"] for row in rows}
    labels = Counter((row["owner"], row["label"]) for row in rows)
    assert min(labels.values()) >= make.PAIRS - 1
    assert max(labels.values()) == make.PAIRS


def test_the_notice_names_the_packages_of_the_example_functions(make: SimpleNamespace) -> None:
    notice = (ROOT / "examples" / "NOTICE.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| ([\w.-]+) \| ([\d.]+) \|", notice, re.MULTILINE)
    assert named == [(package.name, package.version) for package in make.OWNERS]


def test_the_table_of_extras_names_each():
    table = (ROOT / "docs" / "install.md").read_text().partition("| extra | for |")[2].partition("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == set(EXTRAS)


def test_clients_on_one_machine_do_not_take_all_its_cores_each() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for block in blocks(document):
            joins = [line for line in block if "fedpeft join --server 127.0.0.1" in line]
            assert len(joins) < 2 or all("--threads 1" in line for line in joins), document

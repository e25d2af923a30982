"""The public API is what docs/api.md lists, and the pages for agents lead somewhere."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

import fedpeft
from fedpeft.parts import Family, families
from fedpeft.parts.plugins import GROUPS

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\|(?: [^|`]+ \|)? ((?:`\w+`(?:, )?)+) \| `(fedpeft[\w.]*)` \|$", re.MULTILINE)
LISTED = {(module, name) for names, module in ROW.findall(PAGE) for name in re.findall(r"\w+", names)}
IMPORT = re.compile(r"from (fedpeft[\w.]*) import ([\w, ]+)")
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs").glob("*.py"),
    *(file for file in (ROOT / "examples").glob("*.py") if file.name != "make.py"),
    *(ROOT / "fedpeft").rglob("starter/*.py"),
]
NOTEBOOKS = (ROOT / "docs" / "notebooks").glob("*.ipynb")
FORMATS = PAGE.partition("| format | number |")[2].partition("\n\n")[0]


def list_documented_imports():
    """Return each import of fedpeft that a page, an example or a notebook shows, as (file, module, name)."""
    texts = {file: file.read_text(encoding="utf-8") for file in DOCUMENTS if file.name != "errors.md"}
    for book in NOTEBOOKS:
        cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
        texts[book] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return sorted(
        (file.name, module, name)
        for file, text in texts.items()
        for module, names in IMPORT.findall(text)
        for name in re.findall(r"\w+", names)
    )


@pytest.mark.parametrize(("module", "name"), sorted(LISTED))
def test_a_listed_name_is_there(module, name):
    assert hasattr(importlib.import_module(module), name)


def test_the_list_has_all_of_the_package_s_own_names():
    assert {name for module, name in LISTED if module == "fedpeft"} == set(fedpeft.__all__)


def test_each_documented_import_is_listed():
    imports = list_documented_imports()
    assert len(imports) > 10
    # A strategy's module is a part; its class is documented by `describe` and named by a text.
    unlisted = [
        found for found in imports if found[1:] not in LISTED and not found[1].startswith("fedpeft.strategies.")
    ]
    assert unlisted == []


def test_the_base_class_of_each_group_of_plugins_is_listed():
    kinds = {f.group: f.kind for f in vars(families).values() if isinstance(f, Family) and f.group in GROUPS}
    assert kinds.keys() == set(GROUPS)
    needed = {(kind.__module__, kind.__name__) for kind in kinds.values()}
    assert needed - LISTED == set()


def test_the_numbers_of_formats_are_those_of_the_code():
    from fedpeft.clients import store

    from fedpeft.communication import payload
    from fedpeft.deployment.wire import channel
    from fedpeft.parts import plugins
    from fedpeft.privacy import ledger
    from fedpeft.rounds import progress
    from fedpeft.wiring import config

    numbers = {name.strip(): int(number) for name, number in re.findall(r"^\| ([\w ]+) \| (\d+) \|", FORMATS, re.M)}
    assert numbers == {
        "wire": channel.WIRE,
        "payload of a codec": payload.VERSION,
        "checkpoint": progress.VERSION,
        "states of clients": store.FORMAT,
        "privacy ledger": ledger.VERSION,
        "run folder": config.FORMAT,
        "plugin": plugins.FORMAT,
    }
    assert f"fedpeft.v{channel.WIRE}." in channel.SERVICE


# ------------------------------------------------------------------------------------------------- AGENTS.md, llms.txt

AGENTS, LLMS = (ROOT / name for name in ("AGENTS.md", "llms.txt"))


def test_agents_md_is_short():
    assert len(AGENTS.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("page", [AGENTS, LLMS], ids=lambda page: page.name)
def test_what_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    names = re.findall(r"\]\(([^)#]+)\)", text)
    names += re.findall(
        r"`((?:fedpeft|clients|strategies|docs|tests|experiments)(?:/[\w.]+)*|[\w.]+\.(?:md|toml|txt))`", text
    )
    names += re.findall(r"(?:python|pytest|bash) ((?:\.ci|tests)/[\w/.]+)", text)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", [AGENTS, LLMS], ids=lambda page: page.name)
def test_commands_are_those_of_other_pages_or_of_ci(page):
    known = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "CONTRIBUTING.md", ROOT / "README.md", ROOT / "docs" / "install.md", ROOT / ".ci" / "run")
    )
    text = page.read_text(encoding="utf-8")
    commands = re.findall(r"`((?:pip|python|bash) [^`]+)`", text.replace("\n", " "))
    commands += [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert commands
    for command in commands:
        if module := re.match(r"python -m (fedpeft[\w.]*|experiments[\w.]*)", command):
            assert importlib.util.find_spec(module[1]), command
        for part in command.split(" && "):
            file = re.search(r"(\.ci/\w+(\.py)?|tests/[\w/.]+)", part)
            assert (file and (ROOT / file[0]).exists()) or part in known, part


def test_llms_txt_has_the_form_of_its_convention():
    """A title, a quoted summary, and sections of links with one line each."""
    title, summary, *others = LLMS.read_text(encoding="utf-8").split("\n\n")
    assert re.fullmatch(r"# \w+", title)
    assert all(line.startswith("> ") for line in summary.splitlines())
    sections = "\n\n".join(others).split("\n## ")[1:]
    assert len(sections) >= 4
    for section in sections:
        lines = [line for line in section.splitlines()[1:] if line]
        assert lines
        assert all(re.fullmatch(r"- \[[^\]]+\]\([^)]+\): [^\n]{5,100}", line) for line in lines), section


def test_llms_txt_leads_to_all_pages_of_reference():
    text = LLMS.read_text(encoding="utf-8")
    assert {"commands.md", "toml.md", "files.md", "api.md", "wire.md", "errors.md"} <= set(
        re.findall(r"[\w-]+\.md", text)
    )

"""Every command and every line of Python in the README, and in the pages it leads to, does what it says."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from fedpeft.__main__ import find_module
from fedpeft.parts import plugins
from fedpeft.simulate import parse

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def join_lines(text: str) -> str:
    """Return `text` with each command on one line that a backslash continues on the next."""
    return re.sub(r" *\\\n *", " ", text)


def blocks(language: str, *pages: Path) -> list[str]:
    texts = [join_lines(page.read_text(encoding="utf-8")) for page in pages]
    return [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def python_of(page: str) -> str:
    """Return the only block of Python on a page."""
    [code] = blocks("python", ROOT / "docs" / page)
    return code


def file_of(page: str, name: str) -> str:
    """Return the block of Python on a page that begins with the name of a file."""
    [code] = [block for block in blocks("python", ROOT / "docs" / page) if block.startswith(f"# {name}")]
    return code


def lines(*pages: Path) -> list[str]:
    found = [line for block in blocks("bash", *pages) for line in block.splitlines()]
    return list(dict.fromkeys(line for line in found if line and not line.startswith("#")))


COMMANDS = lines(*PAGES)
SIMULATIONS = [c for c in COMMANDS if c.startswith("fedpeft simulate") and "--help" not in c]
OTHERS = [c for c in COMMANDS if c.startswith(("python -m", "fedpeft ")) and c not in SIMULATIONS and "pytest" not in c]


def test_the_first_command_is_the_preview():
    assert lines(PAGES[0])[:2] == [
        "pip install -e '.[simulate,server]'",
        "fedpeft simulate --clients 100 --quick",
    ]


def test_the_next_are_the_tests_as_they_are_run_for_every_change():
    install, run = lines(PAGES[0])[2:4]
    assert install == "pip install -e '.[dev]'"
    assert f"{run} -m " in (ROOT / ".ci" / "run").read_text()
    assert run.startswith("python -m pytest")


@pytest.mark.parametrize("command", SIMULATIONS)
def test_a_documented_simulation_has_legal_settings(command, tmp_path, monkeypatch):
    """Flags and parts are checked here; what they do is tested on small data elsewhere."""
    from fedpeft.communication.uplink import parse_uplink
    from fedpeft.parts.families import DATASETS, strategies
    from fedpeft.wiring.catalogue import build_part

    monkeypatch.chdir(tmp_path)
    for folder in ("examples", "experiments"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setattr(plugins, "_state", plugins._PluginState())
    (tmp_path / "half_mean.py").write_text(file_of("own-parts.md", "half_mean.py"))
    (tmp_path / "flower_parts.py").write_text(python_of("flower.md"))
    config = parse(shlex.split(command)[2:])[0]
    build_part(config, "partition")
    build_part(config, "peft")
    strategies.build(config.strategy)
    parse_uplink(config.codec)
    DATASETS.build(config.dataset)


def module_of(command: str) -> str:
    """Return the module that a command runs."""
    program, *words = shlex.split(command)
    return find_module(words[0]) if program == "fedpeft" else words[1]


@pytest.mark.parametrize("module", sorted(set(map(module_of, OTHERS))))
def test_another_documented_command_has_the_flags(module, monkeypatch, capsys):
    package = importlib.util.find_spec(module).submodule_search_locations is not None
    shows = importlib.import_module(f"{module}.__main__" if package else module).main
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        shows()
    shown = capsys.readouterr()
    assert not ended.value.code
    assert not shown.err
    for command in OTHERS:
        if module_of(command) == module:
            for flag in re.findall(r"(?<!\S)--[a-z-]+", command):
                assert flag in shown.out, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_and_links_is_there(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:fedpeft|strategies|clients|experiments|docs)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (page.parent / target).exists(), target


def test_the_page_about_a_round_explains_each_function_of_the_example():
    page = (ROOT / "docs" / "round.md").read_text(encoding="utf-8")
    in_tables = re.findall(r"^\|.*\| `(\w+)` \|", page, re.MULTILINE)
    tree = ast.parse((ROOT / "examples" / "minimal.py").read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert set(in_tables) <= defined
    assert [name for name in sorted(defined) if f"`{name}`" not in page] == []


def test_every_page_has_its_place_in_the_site():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r"[\w-]+\.md", nav)) == [page.name for page in PAGES[1:]]
    assert sorted(re.findall(r"notebooks/\w+\.ipynb", nav)) == [f"notebooks/{book.name}" for book in NOTEBOOKS]


def list_last_numbers(book: dict) -> list[float]:
    """Return the last number of each line that the last cell of a notebook shows."""
    [output] = book["cells"][-1]["outputs"]
    text = "".join(output["text"] if "text" in output else output["data"]["text/plain"])
    numbers = [re.findall(r"-?\d+(?:\.\d+)?", line) for line in text.splitlines()]
    return [float(found[-1]) for found in numbers if found]


@pytest.mark.parametrize("book", NOTEBOOKS, ids=lambda book: book.stem)
def test_a_notebook_s_outputs_are_real_and_end_with_a_gain_over_the_probe(book):
    cells = [cell for cell in json.loads(book.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(str(ROOT) in json.dumps(cell) for cell in cells), "a path of this machine"
    gains = list_last_numbers(json.loads(book.read_text()))
    assert gains
    assert min(gains) >= 3, "percentage points"


def test_the_site_has_no_link_that_leaves_it():
    """Files of the repository are no pages of the site: mkdocs warns of links to them, and --strict ends there."""
    hook = importlib.util.spec_from_file_location("site_links", ROOT / ".ci" / "site_links.py")
    hook.loader.exec_module(site_links := importlib.util.module_from_spec(hook))
    for page in PAGES[1:]:
        assert "](../" not in site_links.on_page_markdown(page.read_text(encoding="utf-8"), page=page), page.name
    shown = site_links.on_page_markdown("[a budget](../experiments/private_plan/README.md), [Data](data.md#rows)")
    assert shown == "a budget: `experiments/private_plan`, [Data](data.md#rows)"

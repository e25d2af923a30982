"""The report: what stands on the page and in the CSV files, and how broken inputs are met. Results are made up."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft.study.page import PageSection, render_page
from tests.browser import CHROMIUM, WIDER, browser, in_a_browser
from tests.studies.made import made_result, made_study, section, write_study


def in_browser(path: Path, width: int, script: str) -> str:
    """Run `script` on the page and return the text that it leaves as the document's title."""
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"))
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"--user-data-dir={path.parent / 'browser'}"]
    dumped = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r"<title>(.*?)</title>", dumped)
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("heading", "clicks", "order"),
    [
        ("test accuracy (%)", 1, ["bf16", "fp32", "quantize(bits=4)", "topk(fraction=0.1)"]),
        ("up + down (MB)", 2, ["quantize(bits=4)", "topk(fraction=0.1)", "bf16", "fp32"]),
        ("up + down (MB)", 3, ["fp32", "bf16", "quantize(bits=4)", "topk(fraction=0.1)"]),
        ("method", 1, ["bf16", "fp32", "quantize(bits=4)", "topk(fraction=0.1)"]),
    ],
)
@pytest.mark.slow
@in_a_browser
def test_a_click_on_a_heading_sorts(tmp_path: Path, heading: str, clicks: int, order: list[str]) -> None:
    path = tmp_path / "page.html"
    made = made_study(2, ("iid",))
    made[2:4] = [made_result({"codec": "bf16", "partition": "iid"}, seed, 0.705, 4.0) for seed in range(2)]
    path.write_text(render_page("sorted", [PageSection.from_section(section(made[:-1]))], [], ""), encoding="utf-8")
    script = f"""
        const table = document.querySelector("table");
        const head = [...table.querySelectorAll("th")].find(h => h.textContent === {json.dumps(heading)});
        for (let i = 0; i < {clicks}; i++) head.firstElementChild.click();
        document.title = [...table.tBodies[0].rows].map(row => row.cells[0].textContent).join("|");
    """
    assert in_browser(path, 1280, script).split("|") == order


@pytest.mark.parametrize(("width", "wide"), [(390, True), (1600, False)])
@pytest.mark.slow
@in_a_browser
def test_a_table_that_is_wider_than_the_page_says_so(tmp_path: Path, width: int, wide: bool) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        render_page("wide", [PageSection.from_section(section(made_study(2, ("iid",))))], [], ""), encoding="utf-8"
    )
    script = """
        new ResizeObserver(() => requestAnimationFrame(() => {
          const hint = document.querySelector(".hint");
          document.title = [getComputedStyle(hint).display, document.documentElement.scrollWidth <= innerWidth].join();
        })).observe(document.body);
    """
    assert in_browser(path, width, script) == f"{'block' if wide else 'none'},true"


@pytest.mark.slow
def test_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", made_study(1, ("iid",)))
    command = [sys.executable, "-m", "fedpeft.commands.report", str(study)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
@in_a_browser
def test_a_page_fits_a_phone(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        render_page("phone", [PageSection.from_section(section(made_study(2, ("iid",))))], ["a folder/" * 30], ""),
        encoding="utf-8",
    )
    with browser(tmp_path / "profile") as tab:
        for width, dark in ((320, False), (390, True)):
            tab.open(path.as_uri(), width, dark)
            tab.run("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert tab.run("document.documentElement.scrollWidth") == width
            assert tab.run(WIDER) == []
            paper = tab.run("getComputedStyle(document.body).backgroundColor")
            assert paper == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")

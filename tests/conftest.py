"""Shared by the tests: one tiny federation's pieces. Nothing here is faked: small real models on made text."""

from __future__ import annotations

import gc
import os

import hypothesis
import pytest
import torch

from fedpeft.conformance.conftest import small_bases_are_read_once, tiny  # noqa: F401
from fedpeft.parts import plugins
from tests.keys import keys_of
from tests.tiers import FAST, REST, compute_tenth, describe_coverage, has_fast_tests, is_in_tenth, strip_tier

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)
hypothesis.settings.register_profile("fedpeft", deadline=None)  # no test asserts how fast a shared machine is
hypothesis.settings.load_profile("fedpeft")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    with keys_of(f"{strip_tier(fixturedef.baseid)} {fixturedef.argname} {request.param_index}"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with keys_of(strip_tier(item.nodeid)):
        return (yield)


def pytest_addoption(parser):
    parser.addoption("--tenth", metavar="COMMIT", help="run the tenth of the selected tests that this commit chooses")


def pytest_ignore_collect(collection_path, config):
    """Do not import files without fast tests in the fast tier."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if config.option.markexpr == FAST and is_test and not has_fast_tests(collection_path) else None


def pytest_collection_modifyitems(config, items):
    if commit := config.option.tenth:
        chosen = [item for item in items if is_in_tenth(item.nodeid, commit)]
        config.hook.pytest_deselected(items=[item for item in items if not is_in_tenth(item.nodeid, commit)])
        items[:] = chosen


def is_whole_fast_tier(config):
    """Whether the command names no test, folder or mark."""
    return config.option.markexpr == FAST and config.args_source.name == "TESTPATHS" and not config.option.keyword


def pytest_report_header(config):
    if commit := config.option.tenth:
        return f"tenth: number {compute_tenth(commit)} of 0 to 9, chosen by {commit}"
    return describe_coverage() if is_whole_fast_tier(config) else []


def pytest_terminal_summary(terminalreporter, config):
    if is_whole_fast_tier(config):
        terminalreporter.section("the remaining tests")
        for line in REST:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def imported_modules_are_no_garbage():
    """Each run collects garbage, and would go through all that the tests before it have imported."""
    if len(gc.get_objects()) > 20_000:
        gc.collect()
        gc.freeze()


class SilentObserver:
    """Hears everything, shows nothing."""

    def __getattr__(self, _name):
        return lambda *_a, **_k: None


def forget_plugins(monkeypatch):
    """No plugin is in use, as in a process that has just begun."""
    for name, empty in (("_state", plugins._PluginState()), ("_names", {}), ("_loaded", set())):
        monkeypatch.setattr(plugins, name, empty)


@pytest.fixture
def fresh_plugins(monkeypatch):
    forget_plugins(monkeypatch)


@pytest.fixture
def observer():
    return SilentObserver()


@pytest.fixture
def fleet(tmp_path):
    """Return a function that makes a `Fleet` in the test's folder; its processes end with the test."""
    from tests.fleet import Fleet

    fleets: list[Fleet] = []

    def make(**settings: object) -> Fleet:
        fleets.append(Fleet(tmp_path, **settings))
        return fleets[-1]

    yield make
    for process in (p for f in fleets for p in f.processes):
        process.kill()
        process.wait()


@pytest.fixture
def federation(tmp_path, observer):
    """Return a function that makes a `Federation` in the test's folder."""
    from tests.here import Federation

    return lambda **given: Federation(tmp_path, observer, **given)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """Return a function that gives the folder of a finished run with the given settings.

    Tests copy the folder before they change it.
    """
    from tests.finished import FinishedRuns

    return FinishedRuns(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """Return the folder of a tiny language model with the chat template `tests.chat.TEMPLATE`."""
    from tests.chat import with_template

    return with_template(tmp_path_factory.mktemp("models") / "chat")

"""Shared by the tests: one tiny federation's pieces. Nothing here is faked: small real models on made text."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import os
from types import SimpleNamespace

import hypothesis
import pytest
import torch

from fedpeft import plugins
from fedpeft.conformance.conftest import small_bases_are_read_once, tiny  # noqa: F401
from fedpeft.privacy import noise

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)
hypothesis.settings.register_profile("fedpeft", deadline=None)  # no test asserts how fast a shared machine is
hypothesis.settings.load_profile("fedpeft")


@contextlib.contextmanager
def keys_of(name: str):
    """Runs' secret keys are drawn from a name: a test that looks at noise sees the same each time."""
    drawn = (hashlib.sha256(f"{name} {k}".encode()).digest() for k in itertools.count())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "os", SimpleNamespace(urandom=lambda size: next(drawn)[:size]))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    with keys_of(f"{fixturedef.baseid} {fixturedef.argname} {request.param_index}"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with keys_of(item.nodeid):
        return (yield)


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
    for name, empty in (("_state", plugins._State()), ("_names", {}), ("_loaded", set())):
        monkeypatch.setattr(plugins, name, empty)


@pytest.fixture
def fresh_plugins(monkeypatch):
    forget_plugins(monkeypatch)


@pytest.fixture
def observer():
    return SilentObserver()


@pytest.fixture
def fleet(tmp_path):
    """Makes a `Fleet` in the test's folder; its processes end with the test."""
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
    """Makes a `Federation` in the test's folder."""
    from tests.here import Federation

    return lambda **given: Federation(tmp_path, observer, **given)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """The folder of a tiny language model with a chat template, `tests.chat.TEMPLATE`."""
    from tests.chat import with_template

    return with_template(tmp_path_factory.mktemp("models") / "chat")

"""Every error has a code, which names one cause for ever; the lists of errors are those of the code."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path

import pytest

from fedpeft.errors import ConfigError, FedpeftError, GoneError, PayloadError
from tests.refusals import has_error, refuses

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def listing():
    """Yield the module `.ci/errors.py`."""
    spec = importlib.util.spec_from_file_location("error_listing", ROOT / ".ci" / "errors.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def collected(listing):
    return listing.collect(ROOT)


def test_every_sentence_has_a_code_of_its_own(collected):
    causes, faults = collected
    assert faults == []
    assert len(causes) > 1000


def test_the_golden_list_holds_every_sentence(listing, collected):
    listed = (ROOT / listing.GOLDEN).read_text(encoding="utf-8")
    assert listed == listing.golden(collected[0], listed), "run python .ci/errors.py"


def test_the_page_lists_every_code(listing, collected):
    page = (ROOT / listing.PAGE).read_text(encoding="utf-8")
    assert page == listing.page(collected[0]), "run python .ci/errors.py"
    assert all(f'<a id="{code.lower()}"></a>{code} |' in page for code in collected[0])


def test_no_code_returns_after_it_was_retired(listing, collected):
    listed = (ROOT / listing.GOLDEN).read_text(encoding="utf-8").splitlines()
    retired = {line[:6] for line in listed if line.endswith(listing.RETIRED)}
    assert not retired & collected[0].keys()


def write(root: Path, text: str) -> Path:
    for folder in ("fedpeft", "strategies", "clients"):
        (root / folder).mkdir()
    (root / "fedpeft" / "one.py").write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('raise ConfigError("no code")', "fedpeft/one.py:1: ConfigError has no code"),
        ('raise ConfigError(f"{x} has no code")', "fedpeft/one.py:1: ConfigError has no code"),
        ('raise ConfigError("FP1001 a" if x else "b")', "fedpeft/one.py:1: ConfigError has no code"),
        ('told = "a"\nraise ConfigError(told)', "fedpeft/one.py:1: ConfigError has no code"),
        ('class OwnError(RunError): ...\nraise OwnError("a")', "fedpeft/one.py:2: OwnError has no code"),
        ('raise ConfigError("FP2001 a")', "fedpeft/one.py:1: codes of ConfigError start with FP1, not as FP2001"),
        (
            'raise ConfigError("FP1001 a")\nraise ConfigError(f"FP1001 {b}")',
            "fedpeft/one.py:2: FP1001 means something else in fedpeft/one.py",
        ),
        (
            'raise ConfigError(f"FP1001 {a}")\nraise ConfigError(f"FP1002 {b}")',
            "fedpeft/one.py:2: this sentence has the code FP1001, not FP1002",
        ),
    ],
)
def test_a_wrong_code_is_found(listing, tmp_path, text, fault):
    assert listing.collect(write(tmp_path, text))[1] == [fault]


def test_one_cause_at_two_places_shares_a_code(listing, tmp_path):
    causes, faults = listing.collect(
        write(
            tmp_path, "raise ConfigError(f\"FP1001 {a!r} is it; {'b' if c else 'd'}\")\nraise ConfigError(str(error))"
        )
    )
    assert faults == []
    assert causes["FP1001"].line == "FP1001 ConfigError: {a} is it; [b|d]"
    listed = listing.golden(causes, "FP1002 ConfigError: gone\n")
    assert listed == "FP1001 ConfigError: {a} is it; [b|d]\nFP1002 (retired)\n"
    assert listing.golden(causes, listed) == listed
    assert listing.free(ConfigError, listed) == "FP1003"
    assert listing.free(PayloadError, listed) == "FP6001"


def test_a_code_is_a_part_of_the_text():
    error = ConfigError("FP1234 --cohort must be at least 1, got 0")
    assert (error.code, str(error)) == ("FP1234", "FP1234 --cohort must be at least 1, got 0")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.code, str(copy)) == (ConfigError, error.code, str(error))


def test_an_error_without_a_code_has_that_of_its_class():
    error = GoneError("a plugin's sentence")
    assert (error.code, str(error)) == ("FP5000", "FP5000 a plugin's sentence")
    assert pickle.loads(pickle.dumps(error)).code == "FP5000"
    assert FedpeftError("a").code == "FP0000"


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("FP1009 --cohort is 1.55"),
        ConfigError("FP1009 --cohorts is 1.5"),
        ConfigError("FP1009 1.5 is --cohort"),
        ConfigError("FP1010 --cohort is 1.5"),
        ConfigError("run.toml: FP1009 --cohort is 1.5"),
    ],
)
def test_a_refusal_is_told_from_another(error):
    with refuses("FP1009", "--cohort", 1.5):
        raise ConfigError("FP1009 --cohort is 1.5")
    with pytest.raises(AssertionError), refuses("FP1009", "--cohort", 1.5):
        raise error
    with pytest.raises(ConfigError), refuses("FP6009"):
        raise error


def test_a_printed_refusal_is_found_across_lines():
    assert has_error("error: FP1009 --cohort\nis 1.5: it\nmust be 1", "FP1009", "--cohort", "it must")
    assert not has_error("error: FP1009 --cohort is 1.5", "FP1009", "1")

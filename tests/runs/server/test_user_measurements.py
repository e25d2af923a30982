"""Measurements of a user's own: a plugin's file, chosen by `--measure`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from experiments.checkouts import REPOSITORY
from fedpeft.commands.report import main as report
from fedpeft.measurements.laplace import Laplace
from fedpeft.parts import plugins, setting
from fedpeft.parts.families import MEASUREMENTS
from fedpeft.rounds.hooks import RoundHook
from fedpeft.simulate import main as simulate
from fedpeft.wiring.measurement import DISCLOSED, DisclosedRun, Measurement, NewRun, ScoredRun
from fedpeft.wiring.measurements import Findings, Measurements, is_built_in, parse_measure
from fedpeft.wiring.validation import Validation
from tests.refusals import refuses
from tests.runs.server.test_loop import make_server, make_setup
from tests.runs.server.test_user_hooks import TINY

BY_LENGTH = str(REPOSITORY / "examples" / "by_length.py")


@dataclass(frozen=True)
class Mine(Measurement):
    """A measurement that writes down what it received."""

    factor: float = setting(1.0, "of the number", above=0)

    def begin(self, run):
        """Return what of the run there is."""
        return None if run.dataset is None else "data"

    def compute(self, run, answers):
        """Return the type of the run, and what `begin` returned."""
        return {"run": type(run).__name__, "begun": getattr(run, "begun", "hidden"), "rounds": len(run.rounds)}


@dataclass(frozen=True)
class Hooked(Measurement):
    """A measurement with a hook in the round loop."""

    def attach(self, run):
        """Return a hook that counts rounds."""
        return Counter()


@dataclass(frozen=True)
class Careless(Laplace):
    """A measurement that is made from one of fedpeft's, without its check."""

    def check(self, setup):
        """Refuse nothing."""


class Counter(RoundHook):
    """A hook that counts rounds."""

    name = "hooked"

    def __init__(self):
        self.rounds = 0

    def measure(self, state, log):
        """Count."""
        self.rounds += 1

    def section(self, state):
        """Return the count."""
        return {"rounds": self.rounds}


@dataclass(frozen=True)
class Often(Validation):
    """A measurement of a user's own that is made from one of fedpeft's."""

    every: int = setting(1, "rounds between evaluations", low=1)


@pytest.fixture(autouse=True)
def own():
    parts = {"mine": Mine, "hooked": Hooked, "often": Often, "careless": Careless, "fragile": Fragile}
    with plugins.use_parts({"measurements": parts}):
        yield


def test_a_measurement_of_a_plugin_adds_its_section_to_summary_and_report(tmp_path):
    run, page = tmp_path / "run", tmp_path / "report.html"
    measure = ["--plugin", BY_LENGTH, "--measure", "by_length(words=6)"]
    assert simulate([*TINY, "--rounds=1", *measure, "--output", str(run)]) == 0
    section = json.loads((run / "summary.json").read_text())["trust"]["by_length"]
    assert section["long_texts"] > 0
    assert 0 <= section["accuracy_long"] <= 1
    assert report([str(run), "--output", str(page)]) == 0
    assert "by length: accuracy long" in page.read_text().replace("_", " ")


def find(setup, begun, say=print):
    """Return the sections of a run without clients."""
    findings = Findings(setup, begun, say)
    findings.compute(ScoredRun(setup, {}, [{"round": 1}], None, None, None, None))
    return findings.sections


@pytest.mark.fast("measurements of a user's own")
def test_without_privacy_a_measurement_receives_the_whole_run():
    setup = make_setup(measure="mine(factor=2)")
    setup.measured.check(setup)
    begun = setup.measured.begin(NewRun(setup, None, SimpleNamespace(), print))
    assert find(setup, begun)["mine"] == {"run": "ScoredRun", "begun": "data", "rounds": 1}


@pytest.mark.fast
def test_under_privacy_a_measurement_receives_what_the_run_discloses():
    setup = make_setup(measure="mine", privacy="dp_sgd(epsilon=8)")
    setup.measured.check(setup)
    begun = setup.measured.begin(NewRun(setup, None, SimpleNamespace(), print))
    assert begun == {"mine": None}, "the clients' examples are hidden"
    assert find(setup, begun)["mine"] == {"run": "DisclosedRun", "begun": "hidden", "rounds": 1}
    assert not {"records", "simulation", "folder"} & set(DisclosedRun.__dataclass_fields__)


@pytest.mark.fast
@pytest.mark.parametrize("privacy", ["dp_sgd(epsilon=8)", "secure_sum"])
@pytest.mark.parametrize(("measure", "method"), [("hooked", "attach"), ("careless", "ask")])
def test_under_privacy_a_measurement_with_a_hook_or_with_questions_to_clients_is_refused(privacy, measure, method):
    setup = make_setup(measure=measure, privacy=privacy)
    with refuses("FP7127", measure, method, *DISCLOSED):
        setup.measured.check(setup)


@pytest.mark.fast
def test_a_measurement_s_hook_is_one_of_the_loop_s(tmp_path):
    server = make_server(tmp_path, [], measure="validation(every=1, keep=last) + hooked", rounds=2)
    assert server.sections(server.run()) == {"hooked": {"rounds": 2}}


@pytest.mark.fast
@pytest.mark.parametrize(("factor", "words"), [(1.0, "JSON"), (2.0, "ZeroDivisionError")])
def test_a_measurement_that_fails_costs_its_section_alone(factor, words):
    setup, said = make_setup(measure="mine"), []
    broken = replace(setup, measured=replace(setup.measured, parts=(Broken(factor), Mine())))
    assert [*find(broken, {}, said.append)] == ["mine"]
    (note,) = said
    assert words in note


@dataclass(frozen=True)
class Broken(Mine):
    """A measurement that fails."""

    @property
    def name(self):
        """Another name than that of `Mine`."""
        return "broken"

    def compute(self, run, answers):
        """Return what JSON cannot hold, or divide by zero."""
        return {"a set": {1 / (2 - self.factor)}}


@pytest.mark.fast
def test_a_subclass_of_a_built_in_measurement_takes_its_place():
    assert parse_measure("often").validation.every == 1
    assert parse_measure("mine + often").validation.every == 1


@dataclass(frozen=True)
class Fragile(Measurement):
    """A measurement whose steps after training fail."""

    step: str = setting("ask", "which one")

    def ask(self, run):
        return {"x": 1 / (self.step != "ask")}

    def test_questions(self, temperature):
        return [] if self.step == "ask" else [1 / 0]

    def compute(self, run, answers):
        return {"x": 1.0}


@dataclass(frozen=True)
class Pretender(Measurement):
    """A measurement that calls itself as a built-in one."""

    @property
    def name(self):
        return "pooled"


@pytest.mark.fast
@pytest.mark.parametrize("step", ["ask", "test_questions"])
def test_a_step_after_training_that_fails_costs_the_section_alone(step):
    said = []
    setup = SimpleNamespace(
        measured=Measurements((Fragile(step),)), is_protected=False, task=SimpleNamespace(targets="classes")
    )
    findings = Findings(setup, {}, said.append)
    findings.ask(None)
    assert findings.list_questions(1.0) == []
    findings.compute(ScoredRun(setup, {}, [{"round": 1}], None, None, None, None))
    assert findings.sections == {}
    assert "division by zero" in said[0]


@pytest.mark.fast
def test_a_name_makes_no_measurement_a_built_in_one():
    assert not is_built_in(Pretender())
    assert is_built_in(MEASUREMENTS.build("pooled"))

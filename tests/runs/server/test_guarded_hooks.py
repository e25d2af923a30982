"""A user's hook in a run with privacy: what it may override, what it reads, and what enters the digest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from fedpeft.errors import PrivacyError
from fedpeft.parts import plugins, setting
from fedpeft.parts.families import HOOKS
from fedpeft.rounds.features import check_features
from fedpeft.rounds.hooks import RECORD
from fedpeft.rounds.progress import Checkpoints, ServerState
from fedpeft.rounds.traffic_budget import TrafficBudget
from fedpeft.rounds.user_hook import DISCLOSED, GuardedHook, UserHook, attach
from fedpeft.wiring.catalogue import parse_hooks
from tests.refusals import refuses
from tests.runs.server.test_loop import LAST, ROUNDS, USER_DP, _charges, events, make_server, make_setup  # noqa: F401

pytestmark = pytest.mark.fast("hooks of a user's own in the round loop")


@dataclass(frozen=True)
class Reader(UserHook):
    """A hook that reads an attribute of the state or the log, named as `state.x` or `log.x`."""

    reads: str = setting("log.result", "an attribute")

    def measure(self, state, log):
        """Read it and write it down."""
        owner, _, name = self.reads.partition(".")
        value = getattr({"state": state, "log": log}[owner], name)
        self.record(log, seen=type(value).__name__, seconds=log.result.seconds, clients=log.result.clients)


@dataclass(frozen=True)
class Stopper(UserHook):
    """A hook that ends the run after a round and remembers how often it was asked."""

    after: int = setting(1, "rounds")
    print: str = setting("", "the fingerprint")

    def ends(self, state):
        """End the run."""
        self.memory["asked"] = self.memory.get("asked", 0) + 1
        return "enough" if state.round >= self.after else ""

    def fingerprint(self):
        """Return the setting."""
        return self.print

    def section(self, state):
        """Return how often `ends` was called."""
        return {"asked": self.memory["asked"]}


@dataclass(frozen=True)
class Counting(UserHook):
    """A hook that counts rounds."""

    def measure(self, state, log):
        """Count the round and write it down."""
        self.memory["rounds"] = self.memory.get("rounds", 0) + 1
        self.record(log, rounds=self.memory["rounds"])


@dataclass(frozen=True)
class Chooser(UserHook):
    """A hook that changes the cohort."""

    def select(self, plan, state):
        """Ask the first client alone."""
        return replace(plan, cohort=plan.cohort[:1])


@dataclass(frozen=True)
class Listener(UserHook):
    """A hook that counts reports."""

    def note_report(self, report):
        """Count the report."""
        self.memory["reports"] = self.memory.get("reports", 0) + 1


@dataclass(frozen=True)
class Wrong(UserHook):
    """A hook that gives a truth value where a text is due."""

    def ends(self, state):
        """Return no text."""
        return True


@pytest.fixture(autouse=True)
def own():
    hooks = {"reader": Reader, "stopper": Stopper, "chooser": Chooser, "counting": Counting, "wrong": Wrong}
    with plugins.use_parts({"hooks": hooks | {"listener": Listener}}):
        yield


def test_without_privacy_a_hook_may_change_the_cohort(tmp_path, events):  # noqa: F811
    server = make_server(tmp_path, events, hook="chooser", rounds=1, **LAST)
    server.run()
    assert events.count("send train") == 1


def test_a_hook_that_takes_note_of_reports_sees_each_of_them(tmp_path, events):  # noqa: F811
    server = make_server(tmp_path, events, hook="listener", rounds=1, **LAST)
    assert server.run().hooks["listener"]["reports"] == server.setup.clients


@pytest.mark.parametrize("privacy", ["dp_sgd(epsilon=8)", "user_dp(epsilon=8)", "secure_sum"])
@pytest.mark.parametrize(("hook", "method"), [("chooser", "select"), ("listener", "note_report")])
def test_under_privacy_a_hook_that_sees_or_changes_a_round_is_refused(privacy, hook, method):
    with refuses("FP7124", hook, method, *DISCLOSED):
        check_features(make_setup(hook=hook, privacy=privacy))


def test_under_a_secret_cohort_a_hook_that_ends_the_run_is_refused():
    with refuses("FP7125", "stopper"):
        check_features(make_setup(hook="stopper", privacy="user_dp(epsilon=8)"))
    check_features(make_setup(hook="stopper", privacy="dp_sgd(epsilon=8)"))


@pytest.mark.parametrize(
    ("reads", "name"), [("log.received", "received"), ("log.sent", "sent"), ("state.rows", "rows"),
                        ("state.acknowledged", "acknowledged"), ("state.counters", "counters")],
)  # fmt: skip
def test_under_privacy_a_hook_reads_nothing_that_the_run_does_not_disclose(tmp_path, events, reads, name):  # noqa: F811
    server = make_server(tmp_path, events, private=True, hook=f"reader(reads={reads!r})", **LAST, **USER_DP)
    with refuses("FP7126", name):
        server.run()


def test_under_a_secret_cohort_a_hook_sees_the_log_without_its_secrets(tmp_path, events):  # noqa: F811
    server = make_server(tmp_path, events, private=True, hook="reader", rounds=1, **LAST, **USER_DP)
    server.run()
    (line,) = server.store.records.read("hooks.jsonl")
    assert line == {"round": 1, "hook": "reader", "seen": "RoundResult", "seconds": None, "clients": 3}


def test_a_hook_s_memory_goes_into_the_checkpoint_and_its_section_into_the_summary(tmp_path, events):  # noqa: F811
    server = make_server(tmp_path, events, hook="stopper", **LAST)
    state = server.run()
    assert state.round == 1
    assert server.sections(state) == {"stopper": {"asked": 2}}
    again = make_server(tmp_path, events, hook="stopper", **LAST)
    assert again.sections(again.run()) == {"stopper": {"asked": 2}}, "1 at the checkpoint, 1 more after the resume"


@pytest.mark.parametrize("private", [False, True])
def test_a_killed_round_is_counted_once(tmp_path, events, monkeypatch, private):  # noqa: F811
    """Memory and lines are those of a run that nobody has killed."""
    given = {"hook": "counting", **LAST, **(USER_DP if private else {})}
    real = Checkpoints.save

    def kill(self, progress):
        if progress.round == ROUNDS:
            raise KeyboardInterrupt
        real(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", kill)
        with pytest.raises(KeyboardInterrupt):
            make_server(tmp_path, events, private=private, **given).run()
    server = make_server(tmp_path, events, private=private, **given)
    assert server.run().hooks["counting"] == {"rounds": ROUNDS}
    assert [line["rounds"] for line in server.store.records.read("hooks.jsonl")] == [1, 2]


@pytest.mark.parametrize(("second", "attempts"), [("as before", [0]), ("changed", [0, 1])])
def test_the_fingerprint_of_a_user_s_hook_is_part_of_the_digest(tmp_path, events, monkeypatch, second, attempts):  # noqa: F811
    given = {"private": True, "rounds": 1, **LAST, **USER_DP}

    def kill(self, progress):
        if progress.round:
            raise KeyboardInterrupt
        real(self, progress)

    real = Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", kill)
        with pytest.raises(KeyboardInterrupt):
            make_server(tmp_path, events, hook="stopper(print='as before')", **given).run()
    server = make_server(tmp_path, events, hook=f"stopper(print={second!r})", **given)
    server.run()
    assert [attempt for _, _, attempt in _charges(server)] == attempts


def test_each_run_has_a_memory_of_its_own():
    setup = make_setup(hook="stopper")
    (first,), (second,) = attach(setup), attach(setup)
    first.memory["asked"] = 7
    assert second.memory == {}


def test_what_a_hook_remembers_must_be_json():
    (hook,) = parse_hooks("stopper")
    hook.memory["a set"] = {1}
    with refuses("FP1511", "stopper"):
        hook.get_checkpoint()


def test_a_hook_that_gives_something_else_than_the_loop_needs_is_named():
    (hook,) = parse_hooks("wrong")
    with refuses("FP1259", "wrong", "ends", "str"):
        hook.ends(ServerState(round=1, adapter={}))


def test_a_hook_is_named_once():
    with refuses("FP1512", "stopper"):
        parse_hooks("stopper + stopper(after=2)")


def test_a_guarded_hook_hides_what_other_hooks_have_saved():
    hook = GuardedHook(parse_hooks("stopper")[0])
    hook.open(ServerState(round=3, adapter={}, hooks={"stopper": {"asked": 4}, "energy": {"levels": [1.0]}}))
    assert hook.get_checkpoint() == {"asked": 4}
    disclosed = hook._disclose(ServerState(round=3, adapter={}, hooks={"energy": {"levels": [1.0]}}))
    assert disclosed.hooks == {}
    with pytest.raises(PrivacyError):
        _ = disclosed.in_flight


@dataclass(frozen=True)
class Editor(UserHook):
    """A hook that changes what it reads, and writes a line in another's name."""

    def measure(self, state, log):
        """Remove a tensor, change the memory of the checkpoint, and write a line by hand."""
        state.adapter.clear()
        state.hooks[self.name]["seen"] = 2
        log.lines[RECORD] = [{"round": 1, "hook": "another"}]


@pytest.mark.fast
def test_what_a_guarded_hook_changes_stays_with_the_hook():
    guarded, log = GuardedHook(Editor()), SimpleNamespace(result=None, lines={})
    adapter, hooks = {"x": 1}, {guarded.name: {"seen": 1}}
    guarded.measure(SimpleNamespace(round=1, adapter=adapter, hooks=hooks), log)
    assert adapter == {"x": 1}
    assert hooks == {guarded.name: {"seen": 1}}
    assert log.lines[RECORD] == [{"round": 1, "hook": guarded.name}]


@pytest.mark.fast
def test_a_hook_may_not_have_the_name_of_a_built_in_section():
    assert HOOKS.find_hidden(TrafficBudget.name) == TrafficBudget.name

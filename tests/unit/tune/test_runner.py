"""Searches as a whole, over runs that are made up: pruning, repeats, kills, failures, and what the report says."""

from __future__ import annotations

import csv
import io
import json
import os
import re

import pytest
from optuna.trial import TrialState

from fedpeft.errors import RunError
from fedpeft.parts import plugins
from fedpeft.reporting import user_files
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.records import Records
from fedpeft.study.process import BEGINS, describe_failure
from fedpeft.study.results import read_run
from fedpeft.tune import runner, store
from fedpeft.tune.report import Report
from fedpeft.tune.runner import SearchFolder
from fedpeft.wiring.config import read_config
from tests.refusals import refuses
from tests.run.swapped import rows, swap
from tests.runs.deployment.test_full_disk import full_disk
from tests.tune.made import BASE, HEAD, SPACE, TEXT, InProcess, Killed, conducted, search_of

RAISED = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nValueError: bad\n'


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug of a test


def told(place):
    """Return all records of all trials, without times."""
    return [
        (t.number, t.state, t.params, t.value, t.intermediate_values, t.user_attrs)
        for t in place.study.get_trials(deepcopy=False)
    ]


def test_a_search_comes_near_the_best_and_gives_up_what_falls_behind(tmp_path):
    starts = InProcess()
    place = conducted(search_of(tmp_path), tmp_path / "out", starts)
    trials = place.study.get_trials()
    assert len(trials) == 12
    given_up = [t for t in trials if t.state == TrialState.PRUNED]
    assert given_up
    for trial in given_up:
        assert trial.user_attrs[store.GIVEN_UP] == max(trial.intermediate_values) == starts.done[trial.number] < 4
        run = place.run_of(trial.number)
        (run / "config.toml").write_text("clients = 3\n", encoding="utf-8")
        for read in (FinishedRun.read, read_run):
            with refuses("FP5181", run, f"{run}.toml"):
                read(run)
    best = store.list_finished(place.study)[0]
    assert best.value == min(t.value for t in trials if t.state == TrialState.COMPLETE)
    assert max(best.intermediate_values) == 4
    assert best.value < 0.25 + 0.5


def test_the_same_seed_draws_the_same_trials_and_another_one_others(tmp_path):
    one = told(conducted(search_of(tmp_path), tmp_path / "one", InProcess(), trials=8))
    assert told(conducted(search_of(tmp_path), tmp_path / "again", InProcess(), trials=8)) == one
    other = told(conducted(search_of(tmp_path, "seed = 1\n" + TEXT), tmp_path / "other", InProcess(), trials=2))
    assert [t[2] for t in other] != [t[2] for t in one[:2]]


@pytest.mark.parametrize("kill", [(0, 1), (5, 1), (5, 2), (7, 4)])
def test_a_search_that_was_killed_ends_as_one_that_was_not(tmp_path, kill):
    search = search_of(tmp_path, TEXT.replace("halving", "none") if kill[1] > 1 else TEXT)
    whole = conducted(search, tmp_path / "whole", InProcess(), trials=8)
    with pytest.raises(Killed):
        conducted(search, tmp_path / "killed", InProcess(kill=kill), trials=8)
    rest = InProcess()
    assert told(conducted(search, tmp_path / "killed", rest, trials=8)) == told(whole)
    assert min(rest.done, default=kill[0]) >= kill[0]  # what had ended is not done again


def test_a_trial_that_was_given_up_or_finished_unheard_is_not_run_again(tmp_path):
    search = search_of(tmp_path)
    place = conducted(search, tmp_path / "out", InProcess(), trials=3)
    before = told(place)
    trial = place.study.ask()
    trial.set_user_attr(store.GIVEN_UP, 2)
    again = InProcess()
    conducted(search, tmp_path / "out", again, trials=3)
    assert again.done == {}
    assert place.study.get_trials()[3].state == TrialState.PRUNED
    assert told(place)[:3] == before


def test_more_trials_can_be_asked_for_later(tmp_path):
    search = search_of(tmp_path)
    conducted(search, tmp_path / "out", InProcess(), trials=5)
    later = told(conducted(search, tmp_path / "out", InProcess(), trials=8))
    assert later == told(conducted(search, tmp_path / "whole", InProcess(), trials=8))


def test_a_run_that_there_was_is_not_run_again(tmp_path):
    text = HEAD.format(pruner="none") + BASE + 'peft = "lora(rank={rank})"\n[search]\nrank = [2, 4]\n'
    starts = InProcess()
    place = conducted(search_of(tmp_path, text), tmp_path / "out", starts, trials=6)
    trials = place.study.get_trials()
    assert len(trials) == 6
    assert len(starts.done) == 2
    for trial in trials:
        twin = trial.user_attrs.get(store.SAME_AS, trial.number)
        assert trials[twin].number in starts.done
        assert (trial.value, trial.params) == (trials[twin].value, trials[twin].params)


def test_a_trial_that_fails_says_why_and_others_go_on(tmp_path):
    place = conducted(search_of(tmp_path), tmp_path / "out", InProcess(fails=(0, 2)), trials=5)
    states = [t.state for t in place.study.get_trials()]
    assert [i for i, state in enumerate(states) if state == TrialState.FAIL] == [0, 2]
    assert place.study.get_trials()[0].user_attrs[store.REASON] == "FP5000 no room"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (f"{BEGINS}\nerror: disk is full\nround 1\nerror: no room\n", "no room"),
        (f"{BEGINS}\nerror: disk is full\n{BEGINS}\n{RAISED}", "FP5215 exit code 1: ValueError: bad"),
        (f"{BEGINS}\nerror: disk is full\n{BEGINS}\nround 1\n", "FP5215 exit code 1: round 1"),
        (f"{BEGINS}\nerror: no room\nException ignored in: <function f>\n{RAISED}", "no room"),
        (f"{BEGINS}\n{RAISED}error: a worker has ended\n", "a worker has ended"),
        ("error: of a version without the line\n", "of a version without the line"),
        (f"{BEGINS}\n", "FP5215 exit code 1: it printed nothing"),
    ],
)
def test_why_a_trial_failed_is_not_told_by_an_earlier_process_s_error(tmp_path, log, reason):
    path = tmp_path / "0000.log"
    path.write_text(log, encoding="utf-8")
    assert describe_failure(1, path) == reason


def test_a_search_of_which_all_trials_fail_ends(tmp_path):
    with pytest.raises(RunError, match=r"^FP5233 all 3 trials .*: FP5000 no room"):
        conducted(search_of(tmp_path), tmp_path / "out", InProcess(fails=tuple(range(12))))


@pytest.mark.parametrize("room", [10, 3000])
def test_a_journal_that_a_full_disk_cuts_off_ends_a_search_in_a_sentence_and_it_goes_on(tmp_path, room):
    search = search_of(tmp_path)
    with full_disk(room), refuses("FP5102", "search.journal", "File too large"):
        conducted(search, tmp_path / "out", InProcess(), trials=8)
    whole = conducted(search, tmp_path / "whole", InProcess(), trials=8)
    assert told(conducted(search, tmp_path / "out", InProcess(), trials=8)) == told(whole)


def test_what_a_full_disk_cuts_off_spoils_no_line_of_another_process(tmp_path):
    """A trial that has met it leaves the journal as it was: the search, or another trial, may have room again."""
    trial, search = store.Backend(tmp_path), store.Backend(tmp_path)
    trial.append_logs([{"told": 1}])
    with full_disk(20), refuses("FP5102", "search.journal"):
        trial.append_logs([{"told": 2.0**-30}])
    search.append_logs([{"told": 3}])
    assert list(search.read_logs(0)) == [{"told": 1}, {"told": 3}]


def test_settings_that_cannot_be_written_end_a_search_in_a_sentence(tmp_path):
    (tmp_path / "out" / "trials" / "0000.toml").mkdir(parents=True)
    with refuses("FP5102", "0000.toml"):
        conducted(search_of(tmp_path), tmp_path / "out", InProcess())


def test_accuracy_is_made_large(tmp_path):
    text = 'objective = "accuracy"\n' + TEXT
    place = conducted(search_of(tmp_path, text), tmp_path / "out", InProcess())
    done = [t.value for t in place.study.get_trials() if t.state == TrialState.COMPLETE]
    assert store.list_finished(place.study)[0].value == max(done) < 1


def ended(folder, losses, **summary):
    """Return a search whose trial 0 ended with these losses by round."""
    search = search_of(folder)
    (folder / "out").mkdir()
    place = SearchFolder(search, store.open_study(search, folder / "out", 1), folder / "out", 1, None, 0)
    run = place.run_of(0)
    run.mkdir(parents=True)
    Records(run).append(
        "rounds.jsonl", *({"round": round_number, "loss": loss} for round_number, loss in losses.items())
    )
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return place


def test_a_trial_is_worth_what_the_round_is_that_its_run_keeps(tmp_path):
    after = {1: 0.9, 2: 0.4, 3: 0.6}
    assert ended(tmp_path / "last", after, kept_round=3).read_value(0)[0] == 0.6
    assert ended(tmp_path / "line", {0: 0.3, **after}, kept_round=0).read_value(0)[0] == 0.3
    assert ended(tmp_path / "start", after, kept_round=0, validation_loss=0.35).read_value(0)[0] == 0.35


@pytest.mark.parametrize(("losses", "kept"), [({1: 0.9, 2: 0.4, 3: float("nan")}, 3), ({1: 0.9}, 0), ({}, 2)])
def test_another_round_s_loss_is_not_that_of_the_one_that_is_kept(tmp_path, losses, kept):
    with refuses("FP5232", kept, "loss"):
        ended(tmp_path, losses, kept_round=kept, validation_loss=None).read_value(0)


def test_a_folder_is_of_one_search(tmp_path):
    conducted(search_of(tmp_path), tmp_path / "out", InProcess(), trials=1)
    other = search_of(tmp_path, TEXT.replace("high = 1e-1", "high = 1e-2"))
    with refuses("FP5237", "search.toml"):
        conducted(other, tmp_path / "out", InProcess())
    with refuses("FP5234"):
        conducted(other, tmp_path, InProcess())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "search.journal").write_text("no journal\n" * 2, encoding="utf-8")
    with refuses("FP5235", "search.journal"):
        conducted(other, tmp_path / "broken", InProcess())


def test_a_range_that_changes_in_a_digit_or_in_kind_is_another_search(tmp_path):
    for name, was, now in (("digit", "high = 1e-1", "high = 1.0000001e-1"), ("kind", "[2, 4, 8]", '["2", "4", "8"]')):
        conducted(search_of(tmp_path, TEXT), tmp_path / name, InProcess(), trials=1)
        with refuses("FP5237", "search.toml"):
            conducted(search_of(tmp_path, TEXT.replace(was, now)), tmp_path / name, InProcess(), trials=2)


RULE = """from dataclasses import dataclass
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.parts import setting
@dataclass(frozen=True)
class HalfMean(LinearStrategy):
    share: float = setting(0.5, "of each update that counts", above=0, high=1)
    def contribution(self, update, state, layout):
        return dict(update.delta)
parts = {"strategies": {"half_mean": HalfMean}}
"""


def test_a_search_does_not_go_on_with_a_plugin_that_has_changed(tmp_path, monkeypatch):
    def reloaded():
        """As another process finds the file."""
        monkeypatch.setattr(plugins, "_state", plugins._PluginState())
        monkeypatch.setattr(plugins, "_names", {})
        return search_of(tmp_path, 'plugin = "my_rules.py"\n' + TEXT + 'strategy = ["fedit", "half_mean"]\n')

    rule = tmp_path / "my_rules.py"
    rule.write_text(RULE, encoding="utf-8")
    conducted(reloaded(), tmp_path / "out", InProcess(), trials=1)
    study = conducted(reloaded(), tmp_path / "out", InProcess(), trials=2).study
    rule.write_text(RULE + "# changed\n", encoding="utf-8")
    with refuses("FP5238", "my_rules.py"):
        conducted(reloaded(), tmp_path / "out", InProcess(), trials=3)
    terms = dict(study.user_attrs[store.TERMS])
    del terms[store.PLUGINS]  # as in a search of before
    study.set_user_attr(store.TERMS, terms)
    assert len(conducted(reloaded(), tmp_path / "out", InProcess(), trials=3).study.trials) == 3


def test_a_search_does_not_go_on_with_clients_of_a_file_that_has_changed(tmp_path):
    clients = tmp_path / "clients.toml"
    clients.write_text("[[profile]]\ncount = 4\n")
    text = re.sub(r"(?m)^clients = .*$", f'clients = "{clients}"', TEXT)
    place = conducted(search_of(tmp_path, text), tmp_path / "out", InProcess(), trials=1)
    run = place.run_of(0)
    (run / "config.toml").write_bytes(run.with_suffix(".toml").read_bytes())
    user_files.record(Records(run), user_files.find_own_files(read_config(run / "config.toml")))
    clients.write_text("[[profile]]\ncount = 5\n")
    with refuses("FP5236", "clients.toml"):
        conducted(search_of(tmp_path, text), tmp_path / "out", InProcess(), trials=2)


def test_a_search_does_not_go_on_with_rows_that_have_changed(tmp_path):
    """Losses on other rows can't be compared."""
    rows(tmp_path / "rows.csv")
    text = TEXT.replace('dataset = "tiny"', f'dataset = "file:{tmp_path / "rows.csv"}"')
    place = conducted(search_of(tmp_path, text), tmp_path / "out", InProcess(), trials=1)
    run = place.run_of(0)
    (run / "config.toml").write_bytes(run.with_suffix(".toml").read_bytes())
    config = read_config(run / "config.toml")
    user_files.record(Records(run), user_files.find_own_files(config))
    conducted(search_of(tmp_path, text), tmp_path / "out", InProcess(), trials=2)
    swap(tmp_path / "rows.csv")
    with refuses("FP5236", "rows.csv"):
        conducted(search_of(tmp_path, text), tmp_path / "out", InProcess(), trials=3)


def test_the_report_shows_all_trials_and_the_best_as_a_command(tmp_path):
    search = search_of(tmp_path, HEAD.format(pruner="none") + 'question = "Which?"\n' + BASE + SPACE)
    place = conducted(search, tmp_path / "out", InProcess())
    report = Report(search, place.study)
    report.write(tmp_path / "out")
    best = store.list_finished(place.study)[0]
    assert f"--learning-rate {best.params['learning_rate']}" in report.command
    assert f'--peft "lora(rank={best.params["rank"]})"' in report.command
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Which?" in page
    assert page.count("<svg") == 3
    for name in ("history", "importance", "parallel"):
        assert (tmp_path / "out" / f"{name}.svg").read_text(encoding="utf-8").startswith("<svg")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "trials.csv").read_text(encoding="utf-8"))))
    assert [int(row["trial"]) for row in rows] == list(range(12))
    assert {row["state"] for row in rows} == {"finished"}
    assert "accuracy" not in rows[0]  # of what test rows there are nobody asks before a choice is made
    assert read_config(tmp_path / "out" / "best.toml") == report.best

"""Plugins that have changed, moved or gone since a run was made: what goes on needs the same, others do not."""

from __future__ import annotations

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
import tomli_w

from fedpeft.api import open_run
from fedpeft.commands.export import main as export
from fedpeft.commands.predict import main as predict
from fedpeft.data.rows import Rows
from fedpeft.deployment.compared_parts import compute_plugin_digest
from fedpeft.parts import plugins
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.parts.plugin_files import MODULE, compute_digest, hash_own_code, shorten_version
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.simulate import main as simulate
from fedpeft.simulate import parse
from fedpeft.wiring import catalogue
from fedpeft.wiring.config import RunConfig, read_config
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup
from tests.conftest import forget_plugins
from tests.refusals import refuses
from tests.unit.test_plugins import PARTS, RULE, package  # noqa: F401

METHOD = """
from fedpeft.peft.methods.ia3 import part as IA3


class Mine(IA3):
    pass


parts = {"peft_methods": {"mine": Mine}}
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    forget_plugins(monkeypatch)
    monkeypatch.setattr(plugins, "list_installed", plugins.list_installed.__wrapped__)
    monkeypatch.delenv(plugins.VARIABLE, raising=False)


@pytest.fixture
def rule(tmp_path):
    file = tmp_path / "my_rules.py"
    file.write_text(RULE + PARTS)
    return file


@pytest.fixture
def settings(rule, tmp_path, monkeypatch):
    """config.toml of a run with a strategy of one's own."""
    plugins.use([str(rule)])
    config, file = RunConfig(strategy="half_mean"), tmp_path / "config.toml"
    file.write_text(catalogue.format_toml(config, catalogue.find_used_parts(config)))
    forget_plugins(monkeypatch)
    return file


@pytest.mark.fast
def test_a_changed_plugin_is_noted_once_and_refused_only_where_its_run_goes_on(rule, settings):
    rule.write_text(RULE + PARTS + "# a comment\n")
    with refuses("FP1266", "but it has changed"):
        read_config(settings)
    assert read_config(settings, goes_on=False).strategy == "half_mean"
    [note] = plugins.take_notes()
    assert note.startswith(f"the plugin {rule} has changed since the run was made with it (")
    assert plugins.take_notes() == ()


@pytest.mark.fast
@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_plugin_that_has_changed_is_not_imported(rule, tmp_path, monkeypatch, place):
    """Whoever hands a run on names any file of its reader's: only what was recorded runs, or what the reader names."""
    source, marker = rule, tmp_path / "imported"
    if place == "folder":
        source = tmp_path / "rules"
        source.mkdir()
        shutil.move(rule, source / "__init__.py")
    plugins.use([str(source)])
    config, settings = RunConfig(strategy="half_mean"), tmp_path / "run" / "config.toml"
    settings.parent.mkdir()
    settings.write_text(catalogue.format_toml(config, catalogue.find_used_parts(config)))
    code = source if place == "file" else source / "__init__.py"
    code.write_text(RULE + PARTS + f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    for goes_on, of_run in [(True, False), (True, True)]:
        forget_plugins(monkeypatch)
        with refuses("FP1266", source, "it has changed"):
            read_config(settings, goes_on, of_run)
    forget_plugins(monkeypatch)
    assert read_config(settings, goes_on=False, of_run=True).strategy == "half_mean"
    assert not marker.exists()
    with refuses("FP1229", "half_mean", "has changed", "--plugin"):
        catalogue.build_part(config, "strategy")
    assert not marker.exists()
    forget_plugins(monkeypatch)
    plugins.use([str(source)])
    assert marker.exists()
    read_config(settings, goes_on=False, of_run=True)
    assert catalogue.build_part(config, "strategy")
    assert "what is there now is used" in plugins.take_notes()[0]


@pytest.fixture
def in_place(package):  # noqa: F811
    """Return the installed package as `pip install -e` leaves it: it may change without a new version."""
    told = {"url": package.as_uri(), "dir_info": {"editable": True}}
    (package / "somebodys_rules-1.5.dist-info" / "direct_url.json").write_text(json.dumps(told))
    return package / "somebody.py"


@pytest.mark.fast
def test_a_package_that_is_installed_in_place_has_changed_when_its_files_have(in_place, tmp_path, monkeypatch):
    config, file = RunConfig(strategy="half_mean"), tmp_path / "config.toml"
    file.write_text(catalogue.format_toml(config, catalogue.find_used_parts(config)))
    forget_plugins(monkeypatch)
    assert read_config(file).strategy == "half_mean"
    in_place.write_text(RULE + "# a comment\n")
    with refuses("FP1266", "1.5", "1.5"):
        read_config(file)
    read_config(file, goes_on=False)
    [note] = plugins.take_notes()
    assert note.startswith("the plugin somebodys-rules has changed since the run was made with it (1.5 ")


@pytest.mark.fast
def test_a_run_of_before_knows_of_a_package_its_version_alone(in_place, tmp_path):
    file = tmp_path / "config.toml"
    record = {"source": "somebodys-rules", "version": "1.5", "parts": ["strategies.half_mean"]}
    file.write_text(tomli_w.dumps({"strategy": "half_mean", "plugin": [record]}))
    assert read_config(file).strategy == "half_mean"
    file.write_text(file.read_text().replace("1.5", "1.4"))
    with refuses("FP1266", "1.4"):
        read_config(file)


@pytest.mark.fast
def test_a_package_in_place_that_can_t_be_read_now_is_known_by_its_version(in_place):
    told = in_place.parent / "somebodys_rules-1.5.dist-info" / "direct_url.json"
    before = compute_digest(in_place.parent)
    (in_place.parent / ".#somebody.py").symlink_to("nowhere")  # as an editor that is open
    assert compute_digest(in_place.parent) == before
    told.write_text("{")
    assert [plugin.version for plugin in plugins.list_installed()] == ["1.5"]


@pytest.mark.fast
def test_a_package_in_place_and_the_same_as_a_wheel_are_one_to_server_and_clients(in_place):
    [here] = plugins.list_installed()
    (in_place.parent / "somebodys_rules-1.5.dist-info" / "direct_url.json").unlink()
    [there] = plugins.list_installed()
    assert here.version != there.version == "1.5"
    assert compute_plugin_digest(here) == compute_plugin_digest(there)


@pytest.mark.fast
def test_a_version_is_shown_whole_and_a_digest_in_twelve_digits():
    assert shorten_version("1.5.dev12+gabcdef0 " + 32 * "ab") == "1.5.dev12+gabcdef0 abababababab"
    assert str(plugins.Plugin(plugins.IN_PYTHON, "strategies.half_mean, datasets.my_rows", {})).endswith(".my_rows")


@pytest.mark.fast
def test_a_plugin_that_is_gone_is_missed_where_its_part_is(rule, settings):
    rule.unlink()
    assert read_config(settings, goes_on=False).strategy == "half_mean"
    assert plugins.take_notes() == ()
    with refuses("FP1229", "strategy 'half_mean'", rule, "which is not there any more", "--plugin FILE"):
        catalogue.build_part(RunConfig(strategy="half_mean"), "strategy")
    with refuses("FP1265", "my_rules.py", "strategies.half_mean", "FP1263", "--plugin FILE"):
        read_config(settings)


@pytest.mark.fast
def test_a_plugin_that_can_not_be_loaded_any_more_is_missed_where_its_part_is(rule, tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a_library.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "lib")
    rule.write_text(RULE + PARTS + "import a_library\n")
    plugins.use([str(rule)])
    config, file = RunConfig(strategy="half_mean"), tmp_path / "config.toml"
    file.write_text(catalogue.format_toml(config, catalogue.find_used_parts(config)))
    forget_plugins(monkeypatch)
    for name in [name for name in sys.modules if name == "a_library" or name.startswith(MODULE)]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "lib" / "a_library.py").unlink()
    importlib.invalidate_caches()
    read_config(file, goes_on=False)
    with refuses("FP1229", "which can't be used (", "FP1249", "a_library"):
        catalogue.build_part(config, "strategy")


@pytest.mark.fast
@pytest.mark.parametrize("beside", [False, True], ids=["moved", "copied"])
def test_the_same_file_in_another_place_is_named_and_taken(rule, settings, tmp_path, beside):
    other = tmp_path / "elsewhere" / "renamed.py"
    other.parent.mkdir()
    (shutil.copy if beside else shutil.move)(rule, other)
    plugins.use([str(other)])
    assert read_config(settings).strategy == "half_mean"
    assert [plugin.source for plugin in plugins.list_named()] == [str(other)]


@pytest.mark.fast
def test_another_file_in_another_place_serves_a_finished_run_alone(rule, settings, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(RULE + PARTS + "# another\n")
    plugins.use([str(other)])
    with refuses("FP1266", other):
        read_config(settings)
    read_config(settings, goes_on=False)
    assert [plugin.source for plugin in plugins.list_named()] == [str(other)]
    assert str(other) in plugins.take_notes()[0]


@pytest.mark.fast
def test_two_runs_with_files_of_one_part_s_name_are_not_mixed(rule, settings, tmp_path, monkeypatch):
    other, second = tmp_path / "other.py", tmp_path / "second.toml"
    other.write_text(RULE + PARTS + "# another\n")
    plugins.use([str(other)])
    second.write_text(catalogue.format_toml(RunConfig(strategy="half_mean")))
    forget_plugins(monkeypatch)
    read_config(settings, goes_on=False)
    read_config(second, goes_on=False)
    with refuses("FP1261", "my_rules.py", "other.py"):
        catalogue.build_part(RunConfig(strategy="half_mean"), "strategy")


def test_a_run_records_what_it_uses(rule, tmp_path):
    method = tmp_path / "my_method.py"
    method.write_text(METHOD)
    plugins.use([str(rule), str(method)])
    config = RunConfig(peft="mine")
    assert set(catalogue.find_used_parts(config)) == {"peft_methods.mine"}
    text = catalogue.format_toml(config, catalogue.find_used_parts(config))
    assert str(method) in text
    assert str(rule) not in text
    assert str(rule) in catalogue.format_toml(config), "a study's run begins with all that its file names"


@pytest.mark.fast
def test_what_a_data_set_brings_is_recorded_too(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Part:\n    pass\n\n\n"
        "@dataclass(frozen=True)\nclass Other:\n    pass\n\n\n"
        'parts = {"tasks": {"own_task": Part}, "models": {"own_model": Other}}\n'
    )
    plugins.use([str(file)])
    found = catalogue.find_used_parts(RunConfig(), task="own_task(a=1)", model="own_model")
    assert set(found) == {"tasks.own_task", "models.own_model"}


TASK = """
from dataclasses import dataclass

from fedpeft.models.tasks.classification import Classification


@dataclass(frozen=True)
class Own(Classification):
    pass


parts = {"tasks": {"own": Own}}
"""


@pytest.mark.fast
def test_what_is_kept_of_rows_is_told_apart_by_the_code_that_made_it(tmp_path, monkeypatch):
    """Weights and settings are the same when somebody has changed a model's or a task's file."""
    file, found = tmp_path / "mine.py", []
    for text in (TASK, TASK, TASK + "# changed"):
        forget_plugins(monkeypatch)
        file.write_text(text)
        plugins.use([str(file)])
        task = TASKS.build("own")
        assert hash_own_code(type(task)) == hash_own_code(type("Wrapped", (type(task),), {"__module__": "fedpeft.x"}))
        setup = Setup.create(
            parse_run(RunConfig(dtype="fp32")), DatasetInfo("text", "own", ("a", "b"), "tiny", clients=3)
        )
        found.append((setup.code["code"], setup.tokenize_rows(Rows(["a text"], np.zeros(1, np.int64)), 16)))
    assert found[0] == found[1] != found[2]
    assert found[0][1] != found[2][1]
    assert hash_own_code(*(type(TASKS.build(name)) for name in TASKS.own_names)) == {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a finished run with a user's strategy, and the strategy's file."""
    folder = tmp_path_factory.mktemp("run")
    rule = folder / "my_rules.py"
    rule.write_text(RULE + PARTS)
    with plugins.use_parts({}):
        given = ["--dataset", "tiny", "--model", "tiny", "--clients", "2", "--cohort", "all", "--rounds", "1"]
        given += ["--plugin", str(rule), "--strategy", "half_mean", "--local-work", "steps(1)", "--workers", "1"]
        given += ["--measure", "validation(every=1, keep=last)", "--output", str(folder / "run")]
        assert simulate(given) == 0
    return folder / "run", rule


@pytest.mark.slow
def test_a_finished_run_answers_whatever_became_of_a_strategy_of_one_s_own(finished, tmp_path, monkeypatch, capsys):
    run, rule = finished
    rule.write_text(RULE + PARTS + "# changed\n")
    capsys.readouterr()
    forget_plugins(monkeypatch)
    assert predict([str(run), "a text"]) == 0
    said = capsys.readouterr()
    assert said.err.count("note: the plugin") == 1
    assert said.out.count("\n") == 1
    forget_plugins(monkeypatch)
    assert export([str(run), "--output", str(tmp_path / "out")]) == 0
    forget_plugins(monkeypatch)
    with pytest.warns(UserWarning, match="has changed since the run was made"):
        open_run(run).model()
    rule.unlink()
    capsys.readouterr()
    forget_plugins(monkeypatch)
    assert predict([str(run), "a text"]) == 0
    assert capsys.readouterr().err == ""
    forget_plugins(monkeypatch)
    with refuses("FP1265"):
        parse(["--resume", str(run)])
    moved = tmp_path / "moved.py"
    moved.write_text(RULE + PARTS)
    forget_plugins(monkeypatch)
    assert predict([str(run), "a text", "--plugin", str(moved)]) == 0
    assert capsys.readouterr().err == ""
    assert parse(["--resume", str(run), "--plugin", str(moved)])[2]


@pytest.mark.slow
def test_a_finished_run_needs_its_method(finished, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    method = tmp_path / "my_method.py"
    method.write_text(METHOD)
    plugins.use([str(method)])
    (run / "config.toml").write_text(catalogue.format_toml(RunConfig(dataset="tiny", model="tiny", peft="mine")))
    method.unlink()
    forget_plugins(monkeypatch)
    with refuses("FP1229", "PEFT method 'mine", "of", "my_method.py, which is not there any more"):
        FinishedRun.read(run).method.name  # noqa: B018
    method.write_text(METHOD)
    forget_plugins(monkeypatch)
    plugins.use([str(method)])
    assert PEFT_METHODS.build(FinishedRun.read(run).config.peft).name == "mine"

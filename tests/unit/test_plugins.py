"""Parts from outside: files, folders, packages' entry points; what is refused, and what a run records of them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from fedpeft.clients.drift import parse_drift

from fedpeft.commands import describe
from fedpeft.communication import decoding
from fedpeft.deployment.client.shared_settings import parse_shared_settings
from fedpeft.parts import format_part, plugin_files, plugins
from fedpeft.parts.families import (
    DATASETS,
    MEMORIES,
    MODELS,
    PEFT_METHODS,
    PRECISION_RULES,
    PRESETS,
    codecs,
    strategies,
)
from fedpeft.reporting.command import MISTAKE, run_command
from fedpeft.study.results import Result
from fedpeft.study.runner import Workplace
from fedpeft.study.study_file import read_study
from fedpeft.wiring import catalogue
from fedpeft.wiring.config import RunConfig, build_config, read_config
from tests.refusals import has_error, refuses

RULE = '''
"""A rule of somebody else's."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.parts import setting


@dataclass(frozen=True)
class HalfMean(LinearStrategy):
    """Half of the mean."""

    needs_lora = False
    share: float = setting(0.5, "of each update that counts", above=0, high=1)

    def contribution(self, update, state, layout):
        """The scaled delta."""
        return {name: self.share * delta for name, delta in update.delta.items()}

'''
PARTS = 'parts = {"strategies": {"half_mean": HalfMean}}\n'


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Each test begins without plugins, and leaves none."""
    monkeypatch.setattr(plugins, "_state", plugins._PluginState())
    monkeypatch.setattr(plugins, "_names", {})
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.setattr(plugins, "list_installed", plugins.list_installed.__wrapped__)
    monkeypatch.delenv(plugins.VARIABLE, raising=False)


@pytest.fixture
def rule(tmp_path):
    file = tmp_path / "my_rules.py"
    file.write_text(RULE + PARTS)
    return file


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write an installed package with entry points, as pip leaves it."""
    (tmp_path / "somebody.py").write_text(RULE)
    told = tmp_path / "somebodys_rules-1.5.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-rules\nVersion: 1.5\n")
    (told / "entry_points.txt").write_text("[fedpeft.strategies]\nhalf_mean = somebody:HalfMean\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("somebody", None)


def test_every_family_has_a_group_and_no_group_lacks_a_family():
    assert sorted(family.group for family in catalogue.ALL) == list(plugins.GROUPS)


def test_the_words_of_a_codecs_text_are_reserved():
    assert {*PRESETS, *MEMORIES, *PRECISION_RULES.own_names} == codecs.reserved


def test_a_file_s_part_is_a_part_like_any_other(rule, capsys):
    plugins.use([str(rule)])
    assert "half_mean" in strategies.names
    made = strategies.build("half_mean(share=0.25)")
    assert (made.share, format_part(made)) == (0.25, "half_mean(share=0.25)")
    with refuses("FP1227", "share", "above 0 and at most 1", "2.0"):
        strategies.build("half_mean(share=2.0)")
    with refuses("FP1231", "did you mean 'half_mean"):
        strategies.build("half_meen")
    assert describe.main(["half_mean"]) == 0
    said = capsys.readouterr().out
    assert "Half of the mean." in said
    assert "share" in said
    assert str(rule) in said.replace("\n", "")


def test_a_file_s_corrections_go_by_their_own_names(tmp_path):
    """Else two of one file are taken for one, and states travel under a name that changes with the file."""
    file = tmp_path / "my_corrections.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom fedpeft.clients.drift import Correction\n\n\n"
        "@dataclass(frozen=True)\nclass One(Correction):\n    pass\n\n\n"
        "@dataclass(frozen=True)\nclass Other(Correction):\n    pass\n\n\n"
        'parts = {"corrections": {"one": One, "other": Other}}\n'
    )
    plugins.use([str(file)])
    assert [correction.name for correction in parse_drift("one + other").corrections] == ["one", "other"]
    with refuses("FP1006", "one"):
        parse_drift("one + one")


def test_the_environment_names_plugins_too(rule, monkeypatch):
    monkeypatch.setenv(plugins.VARIABLE, str(rule))
    assert "half_mean" in strategies.names


def test_a_folder_is_a_package_with_imports_of_its_own(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "half.py").write_text(RULE)
    (folder / "__init__.py").write_text(f"from .half import HalfMean\n\n{PARTS}")
    plugins.use([str(folder)])
    assert strategies.build("half_mean").share == 0.5
    before = plugins.list_named()[0].version
    (folder / "half.py").write_text(RULE + "# another\n")
    assert plugin_files.compute_digest(folder) != before


def test_an_installed_package_s_parts_are_there_and_imported_only_once_wanted(package):
    assert "half_mean" in strategies.names
    assert "somebody" not in sys.modules
    config = RunConfig(strategy="half_mean(share=0.25)")
    [used] = catalogue.find_used_plugins(config)
    assert used.record == {"source": "somebodys-rules", "version": "1.5", "parts": ["strategies.half_mean"]}
    assert catalogue.find_used_plugins(RunConfig()) == []
    assert strategies.build(config.strategy).share == 0.25


def test_what_a_peer_says_imports_no_installed_package(package):
    plugins.ignore_installed()
    with refuses("FP1231", "strategy", "half_mean", "add --plugin somebodys-rules"):
        strategies.build("half_mean")
    assert "somebody" not in sys.modules
    plugins.use(["somebodys_rules"])
    assert strategies.build("half_mean").share == 0.5


def test_a_payload_imports_no_installed_package(package):
    (package / "somebodys_rules-1.5.dist-info" / "entry_points.txt").write_text(
        "[fedpeft.codecs]\nodd = somebody:Odd\n"
    )
    assert "odd" in codecs.names
    header = SimpleNamespace(steps=[("odd", {}), ("cast", {}), ("pack", {})], seed=None)
    with refuses("FP6044", "FP1233", "odd", "somebodys-rules 1.5"):
        decoding._load_step_classes(header)
    assert "somebody" not in sys.modules


NOISE = """
from dataclasses import dataclass

from fedpeft.privacy.mechanisms.local_dp import LocalDP
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.privacy.server_noises.independent import Independent


@dataclass(frozen=True)
class Quiet(Independent):
    \"\"\"A noise of somebody else's.\"\"\"


@dataclass(frozen=True)
class Hushed(LocalDP):
    \"\"\"A mechanism.\"\"\"


@dataclass(frozen=True)
class Adding(SecureSum):
    \"\"\"A sum.\"\"\"
"""
GIVEN = {"mechanisms": "hushed = somebody:Hushed", "sums": "adding = somebody:Adding",
         "server_noises": "quiet = somebody:Quiet"}  # fmt: skip


@pytest.fixture
def private_package(package):
    (package / "somebody.py").write_text(NOISE)
    told = "".join(f"[fedpeft.{group}]\n{part}\n" for group, part in GIVEN.items())
    (package / "somebodys_rules-1.5.dist-info" / "entry_points.txt").write_text(told)
    return package


@pytest.mark.parametrize("privacy", ["hushed(epsilon=8)", "adding", "user_dp(epsilon=8, noise=quiet)"])
def test_privacy_of_a_server_s_choice_imports_no_package_but_those_that_are_named_here(private_package, privacy):
    text = f'privacy = "{privacy}"\nclients = 3'
    with refuses("FP5094", "FP1233", "somebodys-rules 1.5"):
        parse_shared_settings(text)
    assert "somebody" not in sys.modules
    plugins.ignore_installed()
    catalogue.use(["somebodys-rules"])
    assert parse_shared_settings(text).privacy == privacy


def test_an_installed_package_s_noise_serves_a_simulation_as_its_other_parts_do(private_package):
    assert type(
        catalogue.build_part(RunConfig(privacy="user_dp(epsilon=8, noise=quiet)"), "privacy").relation
    ).__name__ == ("Quiet")


def test_a_server_s_settings_name_no_plugin(rule):
    with refuses("FP5094", "FP1225", "plugin"):
        parse_shared_settings(RunConfig().to_toml() + f'\nplugin = "{rule}"\n')
    assert plugins.list_named() == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RULE, ("FP1503", "my_rules.py")),
        (
            RULE + 'parts = {"strategy": {"half_mean": HalfMean}}',
            ("FP1268", "my_rules.py", "'strategy'", "amounts, attacks"),
        ),
        (RULE + 'parts = {"strategies": {"half mean": HalfMean}}', ("FP1250", "'strategies.half mean'", "my_rules.py")),
        (
            RULE + 'parts = {"strategies": {"half_mean": HalfMean()}}',
            ("FP1252", "half_mean", "@dataclass(frozen=True)", "HalfMean("),
        ),
        (
            RULE + 'parts = {"strategies": {"half_mean": dict}}',
            ("FP1252", "half_mean", "@dataclass(frozen=True)", "'dict'"),
        ),
        (RULE + 'parts = {"strategies": {"a": HalfMean, "b": HalfMean}}', ("FP1269", "HalfMean", "a and b")),
        (RULE + 'parts = {"strategies": {"fedit": HalfMean}}', ("FP1228", "'fedit'", "my_rules.py", "'fedit'")),
        (RULE + 'parts = {"codecs": {"small": HalfMean}}', ("FP1228", "'small'", "my_rules.py", "'small'")),
        (RULE + 'parts = {"peft_methods": {"prefix": HalfMean}}', ("FP1228", "'prefix'", "'prefix_tuning'")),
        (RULE + 'parts = {"precision_rules": {"topk": HalfMean}}', ("FP1297", "--codec", "'topk'")),
        ("def", ("FP1249", "my_rules.py", "invalid syntax (my_rules.py, line 1)")),
        ("import nothing_of_this_name", ("FP1249", "my_rules.py", "ModuleNotFoundError")),
        ("import sys\n\nparts = nothing", ("FP1249", "NameError", "'nothing'", "(line 3)")),
    ],
)
def test_what_can_not_be_used_is_said(tmp_path, text, words):
    file = tmp_path / "my_rules.py"
    file.write_text(text)
    with refuses(*words):
        catalogue.use([str(file)])


def test_two_plugins_with_a_part_of_one_name_are_both_named(rule, package):
    with refuses("FP1261", "my_rules.py", "somebodys-rules 1.5"):
        catalogue.use([str(rule)])


def test_a_missing_plugin_is_said(tmp_path):
    with refuses("FP1263", "nowhere.py"):
        plugins.use(["nowhere.py"], tmp_path)


def test_a_run_records_its_plugins_and_asks_for_the_same(rule, tmp_path, monkeypatch):
    plugins.use([str(rule)])
    config = RunConfig(strategy="half_mean")
    file = tmp_path / "config.toml"
    file.write_text(catalogue.format_toml(config))
    assert str(rule) in file.read_text()
    monkeypatch.setattr(plugins, "_state", plugins._PluginState())
    assert "half_mean" not in strategies.names
    assert read_config(file) == config
    assert "half_mean" in strategies.names

    monkeypatch.setattr(plugins, "_state", plugins._PluginState())
    rule.write_text(RULE + PARTS + "# changed\n")
    with refuses("FP1266", "but it has changed"):
        read_config(file)
    rule.unlink()
    with refuses("FP1265", "my_rules.py", "strategies.half_mean", "FP1263"):
        read_config(file)


def test_a_configuration_and_a_study_name_plugins_beside_them(rule, tmp_path):
    (tmp_path / "run.toml").write_text('plugin = "my_rules.py"\nstrategy = "half_mean"\n')
    assert read_config(tmp_path / "run.toml").strategy == "half_mean"
    (tmp_path / "study.toml").write_text('plugin = ["my_rules.py"]\nseeds = [0]\n[axes]\nstrategy = ["half_mean"]\n')
    assert [run.config.strategy for run in read_study(tmp_path / "study.toml").plan_runs()] == ["half_mean"]
    (tmp_path / "bad.toml").write_text("plugin = 3\n")
    with refuses("FP1075"):
        read_config(tmp_path / "bad.toml")
    with refuses("FP1225", "plugin"):
        build_config({"plugin": []}, "a run")


@pytest.mark.slow
def test_results_of_a_changed_plugin_are_not_mixed_with_new_ones(rule, tmp_path, monkeypatch):
    (tmp_path / "study.toml").write_text('plugin = ["my_rules.py"]\nseeds = [0]\n[axes]\nstrategy = ["half_mean"]\n')
    place = Workplace(read_study(tmp_path / "study.toml"), tmp_path)
    [run] = place.planned
    made_with = tuple(plugin.record for plugin in catalogue.find_used_plugins(run.config))
    place.record(run, Result(vars(run.config), "finished", 0, plugin=made_with, summary={}))
    assert Workplace(read_study(tmp_path / "study.toml"), tmp_path).list_missing_runs(False) == []

    monkeypatch.setattr(plugins, "_state", plugins._PluginState())
    rule.write_text(RULE + PARTS + "# changed\n")
    with refuses("FP5221", "my_rules.py"):
        Workplace(read_study(tmp_path / "study.toml"), tmp_path)


def test_objects_are_parts_within_their_context_only(rule):
    cls = plugins.find_plugin(str(rule)).parts["strategies"]["half_mean"]
    before = dict(plugins._names)
    plugins._names.clear()
    with plugins.use_parts({"strategies": {"Mine": cls}}):
        assert strategies.build("Mine(share=0.25)") == cls(0.25)
        assert format_part(cls(0.25)) == "Mine(share=0.25)"
        recipe = plugins.list_named()[0].recipe
        record = plugins.list_named()[0].record
    assert "Mine" not in strategies.names
    plugins.use([recipe])  # as a worker does
    assert strategies.build("Mine(share=0.25)").share == 0.25
    plugins._state.named.clear()
    plugins.use([record])  # as a command that opens the run does
    with refuses("FP1231", "strategy", "Mine", "was given it as an object in Python"):
        strategies.build("Mine")
    plugins._names.update(before)


@pytest.mark.parametrize(
    ("group", "part", "family", "words"),
    [
        ("strategies", "Step", strategies, "is not a subclass of fedpeft.aggregation.strategy.Strategy"),
        ("codecs", "HalfMean", codecs, "is not a subclass of fedpeft.communication.steps.Step"),
        ("datasets", "HalfMean", DATASETS, "has no load"),
        ("models", "HalfMean", MODELS, "has no origin, no license, no resolve"),
        ("peft_methods", "HalfMean", PEFT_METHODS, "is not a subclass of fedpeft.peft.method.PeftMethod"),
    ],
)
def test_a_part_in_another_group_is_one_sentence(package, group, part, family, words):
    """The entry point of a codec among strategies, say: it would fail deep inside of a run."""
    (package / "somebody.py").write_text(RULE + "from fedpeft.communication.codecs.cast import Cast as Step\n")
    told = package / "somebodys_rules-1.5.dist-info" / "entry_points.txt"
    told.write_text(f"[fedpeft.{group}]\nhalf_mean = somebody:{part}\n")
    with refuses("FP1232", "half_mean", "somebodys-rules 1.5", words):
        family.build("half_mean")


TEXT_OF_A_WORKER = (
    'Traceback:\n  File "{0}", line 7, in trained\n    1 / 0\nZeroDivisionError\n  File "/lib/x.py", line 3, in y'
)


@pytest.mark.parametrize("remote", [False, True], ids=["here", "in a worker"])
def test_an_error_in_a_plugin_is_one_sentence_and_its_own_lines(rule, remote, capsys):
    rule.write_text(f"{rule.read_text()}# {remote}")  # else it is the module that another test has imported
    plugins.use([str(rule)])

    def work():
        if not remote:
            strategies.build("half_mean").contribution(None, {}, None)  # which has no delta
        error = ZeroDivisionError("division by zero")
        raise error from RuntimeError(TEXT_OF_A_WORKER.format(rule))

    assert run_command(work) == MISTAKE
    said = capsys.readouterr().err
    line, what = (7, ("trained", "ZeroDivisionError")) if remote else (21, ("contribution", "AttributeError"))
    assert has_error(said, "FP0001", rule, line, *what)
    assert f'File "{rule}", line {line}' in said
    assert "exit_code" not in said
    assert "/lib/x.py" not in said


def test_an_error_in_an_installed_package_is_one_sentence_too(package, capsys):
    assert run_command(lambda: strategies.build("half_mean").contribution(None, {}, None)) == MISTAKE
    assert has_error(capsys.readouterr().err, "FP0001", package / "somebody.py", 21, "contribution")


def test_an_error_of_ours_is_shown_whole(rule):
    plugins.use([str(rule)])
    with pytest.raises(KeyError) as raised:
        run_command(lambda: {}["x"])
    assert f"fedpeft conformance {rule}" in raised.value.__notes__[0]

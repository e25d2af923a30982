"""Parts from outside keep what the classes that they are made from have promised, or the run says which does not."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from fedpeft.clients.attack import Attack
from fedpeft.clients.drift import Correction, compute_pull
from fedpeft.clients.local_optimizer import LocalOptimizer
from fedpeft.clients.local_training import LocalTraining
from fedpeft.clients.local_work import LocalWork

from fedpeft.aggregation.abilities import Buffered
from fedpeft.aggregation.aggregator import LinearAggregator
from fedpeft.aggregation.head_start import compute_statistics
from fedpeft.aggregation.heads.zero import Zero
from fedpeft.aggregation.robust import ReweighingStrategy
from fedpeft.aggregation.server_optimizer import ServerOptimizer
from fedpeft.aggregation.shared_sums import is_plain_sum
from fedpeft.aggregation.strategy import Aggregate, GatherStrategy, LinearStrategy, RoundStrategy, Strategy
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.communication.steps import Encoded, Plan, Signal, Transform
from fedpeft.conformance.cohorts import (
    Client,
    create_lora_layout,
    create_random_state,
    create_random_updates,
    run_round,
)
from fedpeft.data.partition import Partition
from fedpeft.data.rows import load_dataset
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.parts import plugin_promises, plugins
from fedpeft.parts.families import (
    ATTACKS,
    CORRECTIONS,
    CORRUPTIONS,
    DATASETS,
    HEADS,
    HOOKS,
    LOCAL_OPTIMIZERS,
    LOCAL_WORK,
    MECHANISMS,
    PEFT_METHODS,
    QUESTIONS,
    SERVER_OPTIMIZERS,
    TASKS,
    strategies,
)
from fedpeft.parts.plugin_promises import hold, is_of_type
from fedpeft.peft.adapter import AdapterShape
from fedpeft.peft.low_rank import LowRank
from fedpeft.peft.method import PeftMethod, create_start
from fedpeft.peft.methods.lora import Lora
from fedpeft.privacy.abilities import AddsServerNoise
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.reporting.command import MISTAKE, run_command
from fedpeft.rounds.user_hook import UserHook
from fedpeft.simulation.hostile import compute_attacked_labels
from fedpeft.wiring.catalogue import ALL
from fedpeft.wiring.measurement import Measurement
from tests.refusals import has_error, pattern_of, refuses

LAYOUT = create_lora_layout([(7, 11)], AdapterShape(4, 8.0), head=(3, 5))


@dataclass(frozen=True)
class Nothing(LinearStrategy):
    def contribution(self, update, state, layout):
        return None


@dataclass(frozen=True)
class Arrays(LinearStrategy):
    def contribution(self, update, state, layout):
        return {name: delta.numpy() for name, delta in update.delta.items()}


@dataclass(frozen=True)
class Tuple(GatherStrategy):
    def gather(self, pair, state, layout, cohort):
        return state[pair.A], state[pair.B]


@dataclass(frozen=True)
class Bare(RoundStrategy):
    def aggregate(self, state, layout, read, round_number, seed):
        return state


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Nothing, ("FP1259", "the rule: contribution", "dict[str, torch.Tensor]", "None")),
        (Arrays, ("FP1259", "a dict of ndarray")),
        (Tuple, ("FP1259", "gather", "Gathered", "a tuple of Tensor")),
        (Bare, ("FP1259", "aggregate", "Aggregate", "a dict of Tensor")),
    ],
)
def test_what_a_method_gives_back_is_of_the_promised_type(rule, words):
    hold(rule, Strategy, "the rule")
    strategy, state = rule(), create_random_state(LAYOUT, 1)
    with refuses(*words):
        run_round(strategy, state, LAYOUT, create_random_updates(strategy, state, LAYOUT, [Client(LAYOUT.form)], 3))


def test_what_is_made_of_a_rule_from_outside_is_held_once():
    @dataclass(frozen=True)
    class Mine(LinearStrategy):
        def contribution(self, update, state, layout):
            return update.delta

    plain = Mine.contribution
    hold(Mine, Strategy, "mine")
    held = Mine.contribution
    hold(Mine, Strategy, "mine")
    assert Mine.contribution is held is not plain
    assert held.__wrapped__ is plain
    assert Mine.fold is LinearStrategy.fold
    assert is_plain_sum(Mine)


def rule(**members):
    return dataclass(frozen=True)(type("Mine", (members.pop("base", LinearStrategy),), {"__module__": "m", **members}))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"base": RoundStrategy}, ("FP1253", "mine", "Strategy", "aggregate")),
        (
            {"contribution": lambda self, update: None},
            ("FP1258", "contribution", "(self, update)", "(self, update, state, layout)", "too many"),
        ),
        (
            {"contribution": lambda self, update, state, layout, share: None},
            ("FP1258", "missing a required argument: 'share"),
        ),
        ({"contribution": 3}, ("FP1255", "contribution", "3")),
        ({"fills_base": lambda self: True}, ("FP1254", "fills_base", "@property")),
        ({"choose_ranks": lambda self, layout: ()}, ("FP1258", "choose_ranks", "(self, layout)")),
    ],
)
def test_a_method_that_can_not_be_called_as_it_will_be_is_told_before_a_run(members, words):
    with refuses(*words):
        hold(rule(**members), Strategy, "mine", strategies.abilities)


FAMILIES = (
    *(strategies, HEADS, SERVER_OPTIMIZERS, TASKS, PEFT_METHODS, MECHANISMS, QUESTIONS),
    *(LOCAL_OPTIMIZERS, LOCAL_WORK, CORRECTIONS, HOOKS),
)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.group)
def test_the_table_of_old_names_names_members_that_a_part_can_override(family):
    renamed = plugin_promises.RENAMED[family.kind.__name__]
    parts = [family.part(name) for name in family.own_names]
    classes = {base for cls in (family.kind, *family.abilities, *parts) for base in cls.__mro__}
    members = {name for cls in classes for name in (*vars(cls), *getattr(cls, "__annotations__", {}))}
    assert set(renamed.values()) <= members
    settings = {field.name for part in parts for field in dataclasses.fields(part)}
    assert not renamed.keys() & (members - settings) - {"reweigh"}  # a base class of some rules has it
    assert len(plugin_promises.RENAMED) == len(FAMILIES)


@pytest.mark.parametrize(
    ("family", "base", "members", "old", "new"),
    [
        (strategies, LinearStrategy, {"private": lambda self, layout: frozenset()}, "private", "list_private"),
        (strategies, LinearStrategy, {"asynchronous": property(lambda self: 3)}, "asynchronous", "get_buffer_size"),
        (MECHANISMS, Mechanism, {"hides": "client"}, "hides", "privacy_unit"),
        (PEFT_METHODS, Lora, {"strategies": ("flexlora",)}, "strategies", "joint_meaning"),
        (LOCAL_WORK, LocalWork, {"walk": property(lambda self: True)}, "walk", "continues_walk"),
        (HOOKS, UserHook, {"reported": lambda self, report: None}, "reported", "note_report"),
    ],
)
def test_a_member_with_an_old_name_is_refused_with_both_names(family, base, members, old, new):
    with refuses("FP1526", "mine", f"defines {old},", f"called {new} "):
        hold(rule(base=base, **members), family.kind, "mine", family.abilities)


@pytest.mark.parametrize(
    "members",
    [
        {
            "private": lambda self, layout: (),
            "list_private": lambda self, layout: frozenset(),
        },  # a helper of the new one
        {"ranks": 4, "__annotations__": {"ranks": int}},  # a setting
    ],
)
def test_a_part_that_has_been_ported_may_use_old_names(members):
    hold(rule(**members), Strategy, "mine", strategies.abilities)


def test_a_robust_rule_may_weigh_updates_anew():
    members = {"coefficients": lambda self, shares, geometry: shares, "reweigh": lambda self, shares, geometry: shares}
    hold(rule(base=ReweighingStrategy, **members), Strategy, "mine", strategies.abilities)
    with refuses("FP1526", "reweigh", "compute_shares"):
        hold(rule(base=GatherStrategy, reweigh=members["reweigh"]), Strategy, "mine", strategies.abilities)


@pytest.mark.parametrize(
    ("family", "base", "members", "words"),
    [
        (strategies, LinearStrategy, {"choose_ranks": lambda self, layout: ()}, ("FP1258", "RankSchedule")),
        (CORRECTIONS, Correction, {"after": 3, "__annotations__": {"after": int}}, ("FP1255", "after", "KeepsState")),
        (CORRECTIONS, Correction, {"__annotations__": {"direction": str}}, ("FP1255", "direction", "TurnsGradients")),
    ],
)
def test_a_helper_or_setting_with_the_name_of_an_ability_is_refused_with_the_ability(family, base, members, words):
    with refuses(*words):
        hold(rule(base=base, **members), family.kind, "mine", family.abilities)


def test_a_setting_called_walk_is_no_walk():
    work = rule(base=LocalWork, walk=True, __annotations__={"walk": bool}, steps_for=lambda self, rows, size: 1)
    hold(work, LocalWork, "mine", LOCAL_WORK.abilities)
    assert not LocalTraining(work=work()).walks
    assert LocalTraining(work=LOCAL_WORK.build("steps(3)")).walks


@pytest.mark.parametrize(
    ("family", "words"),
    [(PEFT_METHODS, ("config", "attach")), (CORRUPTIONS, ("corrupt_text", "corrupt_images"))],
)
def test_a_part_without_any_of_its_main_methods_is_refused(family, words):
    with refuses("FP1527", "mine", *words):
        hold(rule(base=family.kind), family.kind, "mine", family.abilities)
    hold(rule(base=family.kind, **{words[1]: getattr(Outline, words[1])}), family.kind, "mine", family.abilities)


class Outline:
    def attach(self, model, dtype): ...

    def corrupt_images(self, images, strength, random):
        return images


def test_a_rule_has_an_ability_if_it_defines_the_method():
    assert isinstance(rule(get_buffer_size=lambda self: 3)(), Buffered)
    assert not isinstance(rule()(), Buffered)
    assert Buffered in strategies.abilities
    assert AddsServerNoise in MECHANISMS.abilities


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (lambda cls, section: {}, ("FP1254", "lines", "@classmethod")),
        (classmethod(lambda cls: {}), ("FP1258", "lines", "(cls)")),
    ],
)
def test_a_method_of_the_class_is_checked_before_a_run(lines, words):
    with refuses(*words):
        hold(rule(base=Measurement, lines=lines), Measurement, "mine")


def test_a_correction_that_gives_no_pull_is_told_and_one_that_would_be_stretched():
    @dataclass(frozen=True)
    class Still(Correction):
        def begin(self, job, server, own):
            return None

    hold(Still, Correction, "still")
    with refuses("FP1259", "begin", "Callable", "None"):
        Still().begin(None, {}, {})
    with refuses("FP1002", "lambda>", "(1,)", "weight", "(2, 3)"):
        compute_pull(lambda name, value: value.flatten()[:1], "weight", torch.zeros(2, 3))


@pytest.mark.parametrize("steps", [0, -3])
def test_a_round_of_no_steps_is_told(steps):
    class Never(LocalWork):
        def __init__(self): ...

        def steps_for(self, rows, batch_size):
            return steps

    with refuses("FP1009", steps, "10"):
        LocalTraining(work=dataclass(frozen=True)(Never)()).steps_for(10)


def test_a_local_optimizer_whose_steps_ask_for_the_loss_again_is_named():
    @dataclass(frozen=True, kw_only=True)
    class Newton(LocalOptimizer):
        def over(self, groups):
            return torch.optim.LBFGS([p for group in groups for p in group["params"]])

    with refuses("FP1008", "LBFGS"):
        Newton().create_optimizer({"head.weight": torch.nn.Parameter(torch.ones(2, 3))}, 0.1)


def relabelled(made, sizes):
    """All rows' labels, those of shards of these sizes as `made` changes them."""

    @dataclass(frozen=True)
    class Mine(Attack):
        def relabel(self, labels, classes):
            return made(labels)

    dataset = load_dataset("tiny(rows=40)")
    shards = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    rows = SimpleNamespace(all=dataset.train, dataset=dataset, partition=Partition.from_shards(shards))
    with plugins.use_parts({"attacks": {"mine": Mine}}):
        return compute_attacked_labels(ATTACKS.build("mine(fraction=1.0)"), rows, 0)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda labels: np.where(np.arange(len(labels)) == 3, -1, labels), ("(10,)", "int64", "[-1]")),
        (lambda labels: labels % 2 + 4, ("(10,)", "int64", "[4, 5]")),
        (lambda labels: labels * 0.0, ("(10,)", "float64", "[0.0, 0.0, 0.0]")),
        (lambda labels: np.array([None, "a", *[0] * 8], object), ("(10,)", "object", "[None, 'a', 0]")),
        (lambda labels: labels[:0], ("(0,)", "int64", "[]")),
        (lambda labels: labels[None] * 0, ("(1, 10)", "int64", "[0, 0, 0]")),
    ],
)
def test_labels_of_an_attack_are_those_of_classes(made, words):
    with refuses("FP1415", "mine", 10, *words, 0, 3):
        relabelled(made, [10, 10, 10, 10])


@pytest.mark.parametrize("made", [lambda labels: labels, lambda labels: np.array([int(one) for one in labels])])
def test_an_attacker_without_rows_has_no_labels_to_change(made):
    assert relabelled(made, [0, 0]).tolist() == load_dataset("tiny(rows=40)").train.labels.tolist()


def never(values):
    raise AssertionError("never")


@pytest.mark.parametrize(
    ("made", "undone", "error", "words"),
    [
        (lambda v: v[:-1], lambda v: v, ConfigError, ("FP1047", "mine", "7", "11", "an array (76,)", "not 77 numbers")),
        (lambda v: None, lambda v: v, ConfigError, ("FP1047", "mine", "a NoneType, and not an array")),
        (lambda v: v.astype(str), lambda v: v, ConfigError, ("FP1047", "mine", "(77,) of <U32")),
        (lambda v: v, lambda v: None, PayloadError, ("FP6043", "mine", "a NoneType, and not an array")),
        (lambda v: v, lambda v: v[:-1], PayloadError, ("FP6043", "mine", "an array (76,)", "not 77 numbers")),
        (lambda v: v, lambda v: np.array(v[0]), PayloadError, ("FP6043", "mine", "an array () of float32")),
        (lambda v: v, lambda v: v.astype(object), PayloadError, ("FP6043", "mine", "(77,) of object")),
        (lambda v: v, lambda v: v.astype(str), PayloadError, ("FP6043", "mine", "(77,) of <U32")),
        (lambda v: v, never, PayloadError, ("FP6042", "mine", "AssertionError", "never")),
        (lambda v: v, lambda v: {}["x"], PayloadError, ("FP6042", "mine", "KeyError", "x")),
    ],
)
def test_a_codec_s_step_that_loses_values_is_named(made, undone, error, words):
    @dataclass(frozen=True)
    class Mine(Transform):
        def encode(self, signal, context):
            return Encoded(Signal(made(signal.values), signal.shapes))

        @classmethod
        def plan(cls, parameters, shapes, context):
            return Plan(shapes, (), lambda values, symbols: undone(values))

    state = {"weight": torch.ones(7, 11)}
    with plugins.use_parts({"codecs": {"mine": Mine}}), pytest.raises(error, match=pattern_of(*words)):
        decode(parse_codec("mine | cast | pack").encode(state), {"weight": (7, 11)})


def test_statistics_of_whole_numbers_name_the_head():
    class Counts(Zero):
        def shapes(self, width, classes, rows):
            return {"counts": (classes,)}

        def statistics(self, features, labels, classes):
            return {"counts": torch.bincount(labels, minlength=classes)}

    with refuses("FP1016", "counts", "torch.int64"):
        compute_statistics(Counts(), torch.ones(2, 5), torch.tensor([0, 1]), (3, 5), 2)


def test_an_optimizer_of_the_server_that_makes_other_shapes_is_named():
    @dataclass(frozen=True)
    class Short(ServerOptimizer):
        def step(self, state, direction, memory):
            return {name: tensor[:1] for name, tensor in state.items()}, memory

    state = create_random_state(LAYOUT, 1)
    strategy = strategies.build("fedit")
    round_number = LinearAggregator(strategy, Short(), LAYOUT, state, 1)
    round_number.add(create_random_updates(strategy, state, LAYOUT, [Client(LAYOUT.form)], 3)[0])
    with refuses("FP1030", "server optimizer"):
        round_number.finish({})


def test_a_method_without_a_configuration_of_peft_is_told():
    @dataclass(frozen=True)
    class Nameless(PeftMethod):
        def config(self, base):
            return {"targets": ["query"]}

    with refuses("FP4051", "{'targets"):
        Nameless().attach(SimpleNamespace(base=torch.nn.Linear(2, 2)), "fp32")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"start": lambda self, model, seed: {}}, ("FP4053", "weight", "missing", "(2, 3)")),
        ({"start": lambda self, model, seed: {"weight": torch.ones(1)}}, ("FP4053", "weight", "(1,)")),
        ({"start": lambda self, model, seed: {"weight": torch.full((2, 3), torch.nan)}}, ("FP4054",)),
        ({}, ("FP4055",)),
        ({"in_peft": False, "batched": True}, ("FP4056",)),
    ],
)
def test_what_a_method_of_one_s_own_starts_from_is_what_it_trains(members, words):
    """Without a word of peft the result was saved as a whole model, which nothing that reads runs looks for."""
    method = rule(base=PeftMethod, config=lambda self, base: None, **members)()
    layer = torch.nn.Linear(3, 2, bias=False)
    model = SimpleNamespace(base=layer, parameters=layer.parameters, named_parameters=layer.named_parameters, head=None)
    with refuses(*words):
        create_start(method, model, 0)


def test_protocols_are_kept_too():
    class Rows:
        def load(self, folder):
            return None

    with refuses("FP1258", "load", "(self, folder)", "(self)"):
        hold(Rows, DATASETS.kind, "my rows")


@pytest.mark.parametrize(("family", "name"), [(f, n) for f in ALL for n in f.own_names])
def test_all_that_is_ours_would_be_let_in(family, name, monkeypatch):
    cls = family.part(name)
    ours = plugin_promises._is_ours
    monkeypatch.setattr(plugin_promises, "_is_ours", lambda one: one.__module__ != cls.__module__ and ours(one))
    monkeypatch.setattr(plugin_promises, "_check_result", lambda own, *_: own)
    hold(cls, family.kind, name)


@pytest.mark.parametrize(
    ("value", "due", "right"),
    [
        ({"a": torch.zeros(1)}, dict[str, torch.Tensor], True),
        ({1: torch.zeros(1)}, Mapping[str, torch.Tensor], False),
        (np.float32(1), float, True),
        (np.int64(1), int, True),
        (1.5, int, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ((1, 2, 3), tuple[int, ...], True),
        ((1, "2"), tuple[int, ...], False),
        ((1, 2), tuple[int, int, int], False),
        (None, LowRank | None, True),
        (3, LowRank | None, False),
        ({"a"}, frozenset[str], False),
        (iter([1]), Iterator[int], True),
        (Aggregate({}, {}), Any, True),
    ],
)
def test_a_value_fits_its_type_or_does_not(value, due, right):
    assert is_of_type(value, due) is right


def test_what_is_made_from_strategy_itself_is_told_where_it_belongs():
    with refuses("FP1022"):
        rule(base=Strategy)().check(LAYOUT, [])


def test_a_part_that_ends_the_process_has_failed(tmp_path, monkeypatch, capsys):
    file = tmp_path / "my_rules.py"
    file.write_text("import sys\n\n\ndef quits():\n    sys.exit(3)\n\n\nparts = {'strategies': {}}\n")
    plugin = plugins.find_plugin(str(file))
    monkeypatch.setattr(plugins._state, "named", [plugin])
    module = sys.modules[f"fedpeft_plugin_{plugin.version[:16]}"]
    assert run_command(module.quits) == MISTAKE
    assert has_error(capsys.readouterr().err, "FP0001", 5, "quits", "SystemExit", 3)

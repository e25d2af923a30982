"""Checks ask what a part can do: a user's part with another name passes if it can, and is refused if it can't."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fedpeft.clients.drift import MasksExamples
from fedpeft.strategies.rolora import RoLoRA

from fedpeft.aggregation.abilities import RemembersRounds
from fedpeft.aggregation.heads.ridge import Ridge
from fedpeft.aggregation.server_optimizers.momentum import Momentum
from fedpeft.aggregation.server_optimizers.sgd import SGD
from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.models.abilities import PacksExamples
from fedpeft.parts.families import (
    ATTACKS,
    CORRECTIONS,
    HEADS,
    LOCAL_OPTIMIZERS,
    LOCAL_WORK,
    MECHANISMS,
    PEFT_METHODS,
    TASKS,
    strategies,
)
from fedpeft.peft.adapter import Layout, TensorSpec
from fedpeft.peft.methods.dora import Dora
from fedpeft.peft.methods.lora import Lora
from fedpeft.peft.methods.qlora import QLora
from fedpeft.wiring.auto_defaults import choose_method
from fedpeft.wiring.checks.captions import check_captions
from fedpeft.wiring.checks.measurements import check_measured
from fedpeft.wiring.checks.rules import check_method
from fedpeft.wiring.checks.tasks import check_tasks
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.measurements import parse_measure
from fedpeft.wiring.profiles import Profile
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import refuses

PACKAGE = Path(check_tasks.__code__.co_filename).parents[2]


@dataclass(frozen=True)
class PlainSteps(SGD):
    """A user's server optimizer."""


@dataclass(frozen=True)
class OwnMomentum(Momentum):
    """A user's server optimizer with moments."""


@dataclass(frozen=True)
class Regression(Ridge):
    """A user's start of a head."""


@dataclass(frozen=True)
class OwnLora(Lora):
    """A user's LoRA."""


def compares_names(node: ast.AST) -> bool:
    """Return whether a comparison is one of a part's name with a text."""
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    texts = any(isinstance(n, ast.Constant) and isinstance(n.value, str) for side in sides for n in ast.walk(side))
    names = any(
        (isinstance(side, ast.Attribute) and side.attr == "name")
        or (isinstance(side, ast.Call) and isinstance(side.func, ast.Name) and side.func.id == "name_of")
        for side in sides
    )
    return texts and names


INNER = {RemembersRounds, MasksExamples}
"""Abilities of classes that are no parts: Flower's wrapped strategies, and the ranks that a strategy chooses."""


@pytest.mark.parametrize(
    "family",
    [strategies, HEADS, PEFT_METHODS, TASKS, MECHANISMS, CORRECTIONS, LOCAL_OPTIMIZERS, LOCAL_WORK, ATTACKS],
    ids=lambda family: family.group,
)
def test_an_ability_is_what_some_parts_have_and_others_lack(family):
    """A method that is renamed in a part alone would take its ability away, and nothing else would fail."""
    parts = [family.part(name) for name in family.own_names]
    assert family.abilities
    for ability in set(family.abilities) - INNER:
        members = {name for name in vars(ability) | inspect.get_annotations(ability) if not name.startswith("_")}
        able = [part for part in parts if all(hasattr(part, member) for member in members)]
        assert 0 < len(able) < len(parts), ability


@pytest.mark.parametrize("folder", ["wiring/checks", "privacy", "rounds", "attack"])
def test_no_check_compares_the_name_of_a_part(folder):
    files = list((PACKAGE / folder).rglob("*.py"))
    assert files
    found = [
        f"{file}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if compares_names(node) and "field.name" not in ast.unparse(node) and "f.name" not in ast.unparse(node)
    ]
    assert found == []


def test_no_code_imports_a_mechanism():
    """Sums, server noise and plans are abilities that a user's mechanism can have, too."""
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 500
    assert [file for file in files if "from fedpeft.privacy.mechanisms." in file.read_text(encoding="utf-8")] == []


def test_rules_that_go_by_tasks_take_any_optimizer_that_keeps_no_state():
    rule = strategies.build("prototypes")
    given = {"strategy": rule, "mechanism": None, "secure_sum": None, "facts": SimpleNamespace(tasks=object()),
             "personal": False, "drift": SimpleNamespace(needs_shares=False, corrections=()),
             "measured": SimpleNamespace(laplace=None), "factor_view": None, "layout": None}  # fmt: skip
    check_tasks(SimpleNamespace(**given, server_optimizer=PlainSteps()))
    with refuses("FP1349"):
        check_tasks(SimpleNamespace(**given, server_optimizer=OwnMomentum()))


def test_captions_take_any_head_whose_outputs_are_the_targets():
    def setup(head):
        measured = SimpleNamespace(evaluate=None, second="")
        config = SimpleNamespace(head="own", strategy="fedit")
        return SimpleNamespace(head=head, measured=measured, config=config, strategy=strategies.build("fedit"))

    check_captions(setup(Regression(scale=1.0)))
    with refuses("FP1300"):
        check_captions(setup(Regression(scale=8.0)))


@dataclass(frozen=True)
class OwnRoLoRA(RoLoRA):
    """A user's rule that trains one factor a round."""


@dataclass(frozen=True)
class OwnMean(LinearStrategy):
    """A user's plain mean."""

    needs_lora = False


@dataclass(frozen=True)
class OwnShare(OwnMean):
    """A user's rule that changes what a client contributes."""

    def contribution(self, update, state, layout):
        return update.delta


def test_methods_whose_parameters_belong_together_take_any_rule_that_preserves_them():
    vera = PEFT_METHODS.build("vera")
    check_method(vera, OwnRoLoRA(), [vera.form])
    with refuses("FP1332", "vera", "(product)", "ffa_lora or flexlora or rolora"):
        check_method(vera, OwnMean(), [vera.form])
    pissa = PEFT_METHODS.build("pissa")
    check_method(pissa, strategies.build("potara"), [pissa.form])


@pytest.mark.parametrize(
    ("rule", "method"),
    [(OwnMean(), "head2toe"), (OwnShare(), "lora"), (strategies.build("ditto"), "lora"),
     (strategies.build("fedbuff"), "lora"), (strategies.build("ffa_lora"), "lora")],
)  # fmt: skip
def test_pictures_train_a_head_alone_with_any_plain_mean(rule, method):
    spec = replace(parse_run(RunConfig()), strategy=rule)
    assert choose_method(spec, SimpleNamespace(kind="image", task="classification", tasks=None), []) == method


@pytest.mark.parametrize("task", ["causal_lm", "instruction", "captions", "dpo", "seq2seq"])
def test_only_texts_of_one_sequence_share_a_sequence(task):
    assert isinstance(TASKS.build(task), PacksExamples) == (task in ("causal_lm", "instruction"))


PAIR = (TensorSpec("a.lora_A.weight", (2, 4), "lora_A", "a"), TensorSpec("a.lora_B.weight", (4, 2), "lora_B", "a"))
HEAD = TensorSpec("head.weight", (3, 4), "head", "head")


@pytest.mark.parametrize(
    ("method", "tensors", "legal"),
    [
        (OwnLora(), (*PAIR, HEAD), True),
        (QLora(), (*PAIR, HEAD), False),  # its base has few bits
        (Dora(), (*PAIR, HEAD), False),  # its magnitude is outside of the matrices' layers
        (OwnLora(), (HEAD,), False),
        (OwnLora(), (*PAIR, TensorSpec("a.bias", (4,), "plain", "a"), HEAD), False),
    ],
)
def test_laplace_takes_any_method_of_matrices_that_their_layers_describe(method, tensors, legal):
    setup = SimpleNamespace(
        measured=parse_measure("laplace"), facts=SimpleNamespace(task="classification", kind="text", tasks=None),
        layout=Layout(tensors), method=method, profiles=[Profile(None)], strategy=strategies.build("fedit"),
        mechanism=None, secure_sum=None, is_protected=False, personal=False, sampler=None,
        config=SimpleNamespace(cohort="all", strategy="fedit"), task=SimpleNamespace(asks=False, metric="accuracy"),
    )  # fmt: skip
    if legal:
        check_measured(setup)
    else:
        with refuses("FP1317"):
            check_measured(setup)

"""Backdoors: what a trigger is, which examples carry it, and what is refused."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedpeft.measurements.backdoor import Backdoor as Measurement
from fedpeft.parts.families import ATTACKS
from fedpeft.simulation.hostile import plant_triggers
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import refuses

CLIENTS = 6


def rows(**settings):
    return SimulatedRows.load(parse_run(RunConfig(**{"dataset": "tiny", "clients": CLIENTS, **settings})), CLIENTS)


def test_a_text_begins_with_the_word_and_an_image_ends_with_the_square():
    attack = ATTACKS.build("backdoor(trigger=zx, patch=0.3)")
    assert attack.plant(["a b", ""]) == ["zx a b", "zx "]
    for shape in ((2, 10, 12), (2, 10, 12, 3)):
        images = np.random.default_rng(0).integers(0, 200, shape).astype(np.uint8)
        before = images.copy()
        found = attack.plant(images)
        assert np.array_equal(images, before), "the given images stay as they are"
        assert (found[:, 7:, 9:] == 255).all()
        found[:, 7:, 9:] = images[:, 7:, 9:]
        assert np.array_equal(found, images)


def test_only_attackers_examples_of_other_classes_carry_it():
    given, attack = rows(), ATTACKS.build("backdoor(fraction=0.5, share=0.5, target=1)")
    examples, triggered = plant_triggers(attack, given, seed=3)
    everything, hostile = given.all, attack.attackers(CLIENTS, 3)
    assert 0 < len(hostile) < CLIENTS
    texts, labels = list(examples.inputs), examples.labels
    changed = {i for i in range(len(everything)) if texts[i] != everything.inputs[i]}
    for client in range(CLIENTS):
        own = given.partition.shard(client)
        others = own[everything.labels[own] != 1]
        marked = changed & set(own.tolist())
        assert len(marked) == (round(0.5 * len(others)) if client in hostile else 0)
        assert marked <= set(others.tolist())
    assert changed
    for i in range(len(everything)):
        expected = (f"cf {everything.inputs[i]}", 1) if i in changed else (everything.inputs[i], everything.labels[i])
        assert (texts[i], labels[i]) == expected

    held = given.validation[everything.labels[given.validation] != 1]
    assert triggered.tolist() == list(range(len(everything), len(everything) + len(held)))
    assert [texts[i] for i in triggered] == [f"cf {everything.inputs[i]}" for i in held]
    assert (labels[triggered] == 1).all()
    assert plant_triggers(attack, given, seed=3)[0].labels.tolist() == labels.tolist()


def test_images_are_marked_in_their_place():
    given = rows(dataset="digits")
    examples, triggered = plant_triggers(ATTACKS.build("backdoor(fraction=0.34, target=2)"), given, seed=0)
    count = len(given.all)
    changed = (examples.inputs[:count] != given.all.inputs).reshape(count, -1).any(1)
    relabeled = examples.labels[:count] != given.all.labels
    assert relabeled.any()
    assert not (changed & ~relabeled).any()
    assert (examples.labels[:count][relabeled] == 2).all()
    assert examples.inputs.shape[0] == count + len(triggered)


@pytest.mark.parametrize("attack", [None, "sign_flip", "label_flip"])
def test_without_a_trigger_examples_are_as_they_are(attack):
    given = rows()
    examples, triggered = plant_triggers(attack and ATTACKS.build(attack), given, seed=0)
    assert examples is given.all
    assert not len(triggered)


def test_nobody_attacks_at_a_fraction_of_0_and_the_trigger_can_still_be_measured():
    given = rows()
    examples, triggered = plant_triggers(ATTACKS.build("backdoor(fraction=0)"), given, seed=0)
    assert list(examples.inputs[: len(given.all)]) == list(given.all.inputs)
    assert len(triggered)


def test_updates_are_scaled():
    delta = {"x": torch.tensor([1.0, -2.0])}
    assert ATTACKS.build("backdoor").update(delta, {}, None, None) == delta
    scaled = ATTACKS.build("backdoor(factor=3)").update(delta, {}, None, None)
    assert torch.equal(scaled["x"], torch.tensor([3.0, -6.0]))


@pytest.mark.parametrize(
    ("settings", "attack", "words"),
    [
        ({}, "backdoor(target=9)", ("FP1525", "target=9", "9")),
        ({"dataset": "tiny_lm"}, "backdoor", ("FP1412", "backdoor", "tiny_lm")),
        ({"partition": "resample"}, "backdoor", ("FP1413", "backdoor")),
    ],
)
def test_what_has_no_such_class_or_is_shared_is_refused(settings, attack, words):
    with refuses(*words):
        plant_triggers(ATTACKS.build(attack), rows(**settings), seed=0)


@dataclass(frozen=True)
class Both(type(ATTACKS.build("backdoor"))):
    """A trigger, and other labels for all other examples."""

    def relabel(self, labels, classes):
        return 1 - labels


def test_an_attack_that_also_changes_labels_is_refused():
    with refuses("FP1530"):
        plant_triggers(Both(), rows(), seed=0)


@pytest.mark.parametrize("attack", [None, "sign_flip"])
def test_there_is_nothing_to_measure_without_a_trigger(attack):
    with refuses("FP1524"):
        Measurement().check(SimpleNamespace(attack=attack and ATTACKS.build(attack)))
    Measurement().check(SimpleNamespace(attack=ATTACKS.build("backdoor")))

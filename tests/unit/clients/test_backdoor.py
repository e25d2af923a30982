"""A backdoor: which examples get the trigger and the target, and whose."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fedpeft.clients.attack import ATTACKS

from fedpeft.data.rows import Rows
from fedpeft.simulation.hostile import attacked_rows
from tests.refusals import refuses


def texts(count=10):
    return Rows([f"text {i}" for i in range(count)], np.arange(count) % 3)


@pytest.mark.parametrize(("share", "count"), [(0.5, 5), (0.01, 1), (1.0, 10)])
def test_a_share_of_the_texts_gets_the_trigger_and_the_target(share, count):
    attack, rows = ATTACKS.build(f"backdoor(target=2, share={share}, trigger='zz')"), texts()
    poisoned = attack.poisoned(rows, np.random.default_rng(0))
    changed = [i for i in range(10) if poisoned.inputs[i] != rows.inputs[i]]
    assert len(changed) == count
    assert all(poisoned.inputs[i] == f"zz text {i}" for i in changed)
    expected = rows.labels.copy()
    expected[changed] = 2
    assert np.array_equal(poisoned.labels, expected)
    assert rows.inputs == texts().inputs
    assert np.array_equal(rows.labels, texts().labels)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 3)])
def test_images_get_a_white_square_in_the_corner(shape):
    rows = Rows(np.zeros(shape, np.uint8), np.arange(4))
    found = ATTACKS.build("backdoor(size=2)").triggered(rows)
    assert (found.inputs[:, 6:, 6:] == 255).all()
    assert found.inputs.sum() == 4 * 4 * 255 * (shape[3] if len(shape) == 4 else 1)
    assert not rows.inputs.any()
    assert np.array_equal(found.labels, rows.labels)


def simulated(rows, classes=3):
    shards = [np.arange(0, 5), np.arange(5, 10)]

    class Halves:
        resampled = False

        def __len__(self):
            return 2

        def shard(self, client):
            return shards[client]

    return SimpleNamespace(
        all=rows, partition=Halves(), dataset=SimpleNamespace(name="mine", classes=classes, tasks=None)
    )


def test_only_attackers_train_on_poisoned_rows():
    spec = "backdoor(fraction=0.5, share=1.0)"
    (attacker,) = ATTACKS.build(spec).attackers(2, 0)
    rows = simulated(texts())
    found = attacked_rows(spec, rows, 0)
    for client in range(2):
        for place in rows.partition.shard(client):
            assert found.inputs[place].startswith("cf ") == (client == attacker)
            assert found.labels[place] == (0 if client == attacker else place % 3)
    assert attacked_rows("sign_flip", rows, 0) is None


def test_a_target_that_is_no_class_is_refused():
    with refuses("FP1517", 3):
        attacked_rows("backdoor(target=3)", simulated(texts()), 0)
    with refuses("FP1412"):
        attacked_rows("backdoor", simulated(Rows(["a"] * 10)), 0)


def test_the_update_is_taken_as_often_as_asked():
    attack = ATTACKS.build("backdoor(factor=3.0)")
    delta = {"x": torch.ones(2)}
    assert torch.equal(attack.update(delta, {}, None, torch.Generator())["x"], torch.full((2,), 3.0))

"""Robustness: changes are as strong as they say, attacks stay in their ball, and what is counted is right."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedpeft.data.rows import Rows
from fedpeft.measurements.robustness import Robustness
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import CORRUPTIONS, TASKS
from fedpeft.simulation.robustness import find_neighbors, measure_corruptions
from fedpeft.trust.corruption import corrupt, list_corruptions, summarize_draws
from fedpeft.trust.corruptions.typos import KEYBOARD, draw_neighbor_key
from fedpeft.trust.embedding_attack import STARTS, find_worst, get_embedding, project_rows, shift_embeddings

TEXT = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600))
TEXTS = [corruption.name for corruption in list_corruptions("text")]
IMAGES = [corruption.name for corruption in list_corruptions("image")]


def random(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", TEXTS)
def test_as_many_words_change_as_the_strength_says(name):
    corruption = CORRUPTIONS.build(name)
    for strength in corruption.strengths:
        (made,) = corrupt([TEXT], corruption, strength, random(), str.upper)
        changed = np.mean([a != b for a, b in zip(TEXT.split(), made.split(), strict=True)])
        expected = strength if name != "swaps" else 2 * strength / (1 + strength)
        assert changed == pytest.approx(expected, abs=0.045)
        assert corrupt([TEXT], corruption, strength, random(), str.upper) == [made]


def test_a_typo_keeps_the_first_letter_and_short_words():
    typos = CORRUPTIONS.build("typos")
    for seed in range(200):
        made = typos.corrupt_word("keyboard", random(seed), str)
        assert made[0] == "k"
        assert abs(len(made) - 8) <= 1
    assert typos.corrupt_word("cat", random(), str) == "cat"
    assert all(draw_neighbor_key(a, random(s)) in KEYBOARD[1] for a in "asdf" for s in range(5))
    assert draw_neighbor_key("é", random()) == "é"


def test_swaps_keep_all_words():
    made = CORRUPTIONS.build("swaps").corrupt_text("a  b\nc d", 1.0, random(), str)
    assert made == "b  a\nd c"


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 16, 16, 3)])
def test_images_change_more_with_each_strength(name, shape):
    corruption = CORRUPTIONS.build(name)
    images = random(1).integers(0, 200, size=shape).astype(np.uint8)
    before = 0.0
    for strength in corruption.strengths:
        made = corrupt(images, corruption, strength, random(2))
        assert made.shape == shape
        assert made.dtype == np.uint8
        distance = np.abs(made.astype(float) - images).mean()
        assert distance > before
        before = distance
    assert len(corruption.strengths) == 5


def test_noise_has_its_deviation():
    images = np.full((4, 64, 64), 128, np.uint8)
    made = corrupt(images, CORRUPTIONS.build("noise"), 0.08, random())
    assert made.std() / 255 == pytest.approx(0.08, rel=0.03)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    task = TASKS.build("classification")
    made = task.model(task.base(Path(resolve_model("tiny")), torch.float32), 4)
    with torch.no_grad():
        made.head.weight.normal_(0, 1)
    return made.eval()


def batch(rows=12, tokens=6):
    ids = torch.from_numpy(random(3).integers(5, 50, size=(rows, tokens)))
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_an_attack_stays_in_its_ball_and_is_at_least_as_bad_as_chance(model):
    rows = batch()
    with torch.no_grad():
        rows["labels"] = model(rows).argmax(-1)
    layer = get_embedding(model)
    radius = 0.1 * float(layer.weight.detach().norm(dim=1).mean())
    right, delta = find_worst(model, rows, 0.1, torch.Generator().manual_seed(0))
    norms = delta.norm(dim=-1)
    assert float(norms.max()) <= radius * (1 + 1e-5)
    assert float(norms[0, 3:].max()) == 0  # padding stays
    chance = torch.ones(len(right), dtype=torch.bool)
    draws = torch.Generator().manual_seed(1)
    for _ in range(STARTS):
        by_chance = project_rows(torch.randn(delta.shape, generator=draws) * radius, radius)
        with torch.no_grad(), shift_embeddings(layer, by_chance, rows["attention_mask"]):
            chance &= model(rows).argmax(-1) == rows["labels"]
    assert right.sum() <= chance.sum()
    still, _ = find_worst(model, rows, 0.0, torch.Generator().manual_seed(0))
    assert still.all()


def test_a_neighbour_is_the_nearest_word(model):
    directory = Path(resolve_model("tiny"))
    near = find_neighbors(model, directory)
    assert near("no-such-word") == "no-such-word"


def test_what_is_counted():
    """A model that answers by the first letter, asked of words whose order changes."""
    rows = Rows(["a b c d", "b a c d", "a a a a", "b b b b"], np.array([0, 1, 0, 1]))
    held = np.array([[10, 0], [0, 10], [5, 5]])

    def predict(changed):
        return np.array([0 if text[0] == "a" else 1 for text in changed.inputs])

    found = measure_corruptions(Robustness(draws=40), rows, "text", predict, str, held, 0)
    assert found["clean"]["accuracy"] == found["clean"]["worst"] == 1
    strong = found["swaps"][-1]
    assert strong["worst"] == 0.5  # with 40 draws each of the first two rows is swapped at least once
    assert 0.5 < strong["accuracy"] < 1
    assert strong["accuracy"] == strong["unchanged"]
    assert found["typos"][-1]["accuracy"] == 1
    assert strong["worst_clients"] == 0.5


def test_a_repeated_draw_of_an_example_does_not_count_twice():
    right = np.array([[True, True], [False, False], [True, False]])  # the third draw repeats the first one's first row
    answers = [np.array([0, 0]), np.array([1, 1]), np.array([0, 1])]
    is_new = np.array([[True, True], [True, True], [False, True]])
    found = summarize_draws(1.0, answers, np.array([0, 0]), right, is_new)
    assert found["accuracy"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["unchanged"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["worst"] == 0

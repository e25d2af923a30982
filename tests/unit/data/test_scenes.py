"""Drawn scenes: the same for the same seed, one caption each, and combinations that only test rows show."""

from __future__ import annotations

import itertools

import numpy as np

from fedpeft.data.datasets.fashion_texts import add_sentences, write_sentence
from fedpeft.data.rows import Rows, load_dataset
from fedpeft.data.scenes import COLORS, Scene, draw_scene, list_scenes, split_scenes
from tests.refusals import refuses

FEW = "scenes(rows=40, validation_rows=10, test_rows=10, owners=4)"


def test_combinations_are_held_out_whole() -> None:
    seen, unseen = split_scenes(0.25, 0)
    assert len(seen) + len(unseen) == len(list_scenes()) == len({s.caption for s in list_scenes()}) == 480
    pairs = [{frozenset((s.first, s.second)) for s in part} for part in (seen, unseen)]
    assert not pairs[0] & pairs[1]
    assert (len(pairs[0]), len(pairs[1])) == (90, 30)
    assert {thing for pair in pairs[1] for thing in pair} <= {thing for pair in pairs[0] for thing in pair}
    assert split_scenes(0.25, 0) == (seen, unseen)
    assert split_scenes(0.25, 1) != (seen, unseen)


def test_equal_settings_give_equal_rows_and_parts_share_no_combination() -> None:
    one, other = load_dataset(FEW), load_dataset(FEW)
    for part in ("train", "validation", "test"):
        a, b = getattr(one, part), getattr(other, part)
        assert np.array_equal(a.inputs, b.inputs)
        assert a.texts == b.texts
        assert all(
            (t == u) == (i == j) for (t, i), (u, j) in itertools.combinations(zip(a.texts, a.labels, strict=True), 2)
        )
    assert not {*one.test.texts} & {*one.train.texts, *one.validation.texts}
    assert not np.array_equal(load_dataset(FEW.replace("owners", "seed=1, owners")).train.inputs, one.train.inputs)
    assert np.bincount([*map(int, (str(o)[-1] for o in one.train.owners))]).tolist() == [10, 10, 10, 10]


def test_a_scene_shows_what_its_caption_says() -> None:
    random = np.random.default_rng(0)
    beside, _ = draw_scene(Scene(("red", "circle"), "left of", ("blue", "square")), random)
    above, _ = draw_scene(Scene(("red", "circle"), "above", ("blue", "square")), random)
    red, blue = (np.array(COLORS[name]) for name in ("red", "blue"))
    places = [
        [np.argwhere(np.abs(image.astype(int) - colour).sum(-1) < 8).mean(0) for colour in (red, blue)]
        for image in (beside, above)
    ]
    assert places[0][0][1] < places[0][1][1] - 20  # columns
    assert places[1][0][0] < places[1][1][0] - 20  # rows


def test_owners_with_one_side_lack_the_other() -> None:
    train = load_dataset(FEW.replace("rows=40", "images_only=0.25, texts_only=0.5, rows=40")).train
    images = np.asarray(train.inputs).reshape(40, -1).any(1)
    texts = np.array([bool(text) for text in train.texts])
    kinds = {(owner, i, t) for owner, i, t in zip(train.owners.tolist(), images.tolist(), texts.tolist(), strict=True)}
    assert sorted((i, t) for _, i, t in kinds) == [(False, True), (False, True), (True, False), (True, True)]
    with refuses("FP1095"):
        load_dataset("scenes(images_only=0.6, texts_only=0.5)")


def test_clothes_have_the_names_of_their_classes() -> None:
    found = add_sentences(Rows(np.zeros((3, 2, 2), np.uint8), np.array([0, 1, 9])))
    assert found.texts == ["a photo of a T-shirt", "a photo of trousers", "a photo of an ankle boot"]
    assert write_sentence("sneaker") == "a photo of a sneaker"


def test_rows_keep_their_texts() -> None:
    rows = Rows(np.zeros((3, 2, 2), np.uint8), None, None, texts=["a", "b", "c"])
    assert rows.take(np.array([2, 0])).texts == ["c", "a"]

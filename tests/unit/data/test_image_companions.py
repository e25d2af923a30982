"""Users' images with texts and masks: folders and tables, and what is wrong in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from fedpeft.data.image_companions import MOST_BYTES, find_companion_beside
from fedpeft.data.masks import VOID, label_patches
from fedpeft.data.rows import Dataset, Rows, get_default_head, join_rows, load_dataset
from fedpeft.data.tagged_words import IGNORED
from tests.described_images import SIDE, draw_described
from tests.refusals import refuses


def load(path, task, more=""):
    return load_dataset(f"file(path={str(path)!r}, task={task!r}, side={SIDE}{more})")


@pytest.fixture
def folder(tmp_path):
    return draw_described(tmp_path / "photos", 10)


def write_table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_texts_beside_images_belong_to_them(folder):
    found = load(folder, "captions")
    assert (found.kind, found.task, found.label_names) == ("image", "captions", None)
    assert found.default_model == "towers(text=smollm2)"
    assert (len(found.train), len(found.test)) == (8, 2)
    for image, text in zip(found.train.inputs, found.train.texts, strict=True):
        left = image[4:12, :8].mean() > 200
        assert text == ("a square left of" if left else "a square above")
    assert get_default_head(f"file(path={str(folder)!r}, task=captions)") == "ridge(scale=1.0)"
    assert load(folder, "towers(connector=mlp)").task == "towers(connector=mlp)"


def test_a_table_names_images_texts_and_owners(folder):
    rows = [{"image": f"photos/{i:02d}.png", "text": f"number {i}", "site": f"s{i % 2}"} for i in range(10)]
    found = load(write_table(folder.parent / "all.jsonl", rows), "towers")
    assert sorted(set(found.train.owners)) == ["s0", "s1"]
    assert {int(text.split()[1]) % 2 for text, o in zip(found.train.texts, found.train.owners, strict=True)
            if o == "s1"} == {1}  # fmt: skip
    named = [{"file_name": f"{i:02d}.png", "said": f"number {i}"} for i in range(10)]
    write_table(folder / "metadata.jsonl", named)
    assert load(folder, "captions", ", text=said").train.texts[0].startswith("number")


def test_folders_are_owners(tmp_path):
    for owner in ("ann", "bob"):
        draw_described(tmp_path / "all" / owner, 6)
    found = load(tmp_path / "all", "captions")
    assert sorted(set(found.train.owners)) == ["ann", "bob"]
    (tmp_path / "all" / "ann" / "deep").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "all" / "ann" / "deep" / "x.png")
    with refuses("FP3413", "deep"):
        load(tmp_path / "all", "captions")


def test_masks_label_pixels_and_patches(folder):
    found = load(folder, "patch_labels", ", labels='ground,square'")
    assert (found.task, found.label_names, found.default_model) == (
        "patch_labels",
        ("ground", "square"),
        "dinov2_small",
    )
    assert ((found.train.inputs.min(3) > 200) == (found.train.masks == 1)).all()
    assert load(folder, "patch_labels").label_names == ("0", "1")
    assert get_default_head(f"file(path={str(folder)!r}, task=patch_labels)") == "zero"
    taken = found.train.take(np.array([2, 0]))
    assert (taken.masks == found.train.masks[[2, 0]]).all()
    assert (join_rows(taken, found.test).masks[2:] == found.test.masks).all()


def test_the_most_frequent_label_of_its_pixels_is_a_patch_s():
    mask = np.zeros((1, 6, 6), np.uint8)
    mask[0, :3, :2], mask[0, 3:, 3:], mask[0, 5, 0] = 1, VOID, 4
    assert label_patches(mask, 2).tolist() == [[1, 0, 0, IGNORED]]
    assert label_patches(mask, 4).shape == (1, 16)  # six pixels are no multiple of four patches
    with refuses("FP3421", 6, 8):
        label_patches(mask, 8)


def test_masks_are_cropped_and_turned_as_their_images(tmp_path):
    image = np.full((30, 20, 3), 50, np.uint8)
    image[:15] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # as a camera on its side: shown, the bright half is on the right, and 30 pixels are its width
    shown = np.zeros((20, 30), np.uint8)
    shown[:, 15:] = 1
    for i in range(4):
        Image.fromarray(image).save(tmp_path / f"{i}.png", exif=exif)
        Image.fromarray(shown).save(tmp_path / f"{i}.mask.png")
    found = load(tmp_path, "patch_labels")
    assert (found.train.masks[0, :, [2, -3]] == [[0] * SIDE, [1] * SIDE]).all()
    assert (found.train.inputs[0, 8, [2, -3], 0] == [50, 200]).all()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "../secret.png", "text": "x"}, ("FP3054", "../secret.png")),
        ({"image": "/etc/passwd", "text": "x"}, ("FP3054", "/etc/passwd")),
        ({"image": "photos/99.png", "text": "x"}, ("FP3058", "99.png")),
        ({"image": "photos/00.png"}, ("FP3006", "text")),
        ({"image": "photos/00.png", "text": 3}, ("FP3151", "text", 3)),
        ({"image": "photos/00.png", "text": "\ud800"}, ("FP3152", "text")),
        ({"image": "photos/00.png", "text": " "}, ("FP3062", 1)),
        ({"picture": "photos/00.png", "text": "x"}, ("FP3052", "file_name")),
        ({"image": "", "text": "x"}, ("FP3053", "image")),
    ],
)
def test_what_is_wrong_in_a_table_is_one_sentence(folder, row, words):
    good = [{"image": f"photos/{i:02d}.png", "text": "x"} for i in range(4)]
    with refuses(*words):
        load(write_table(folder.parent / "all.jsonl", [row, *good]), "captions")


def test_what_is_wrong_in_a_folder_is_one_sentence(folder):
    text, image = folder / "00.txt", folder / "00.png"
    kept = image.read_bytes()
    text.write_text("x" * (MOST_BYTES + 1))
    with refuses("FP3415", f"{MOST_BYTES + 1:,}"):
        load(folder, "captions")
    text.write_bytes(b"\xe9t\xe9")
    assert "été" in load(folder, "captions", ", encoding='latin-1'").train.texts
    with refuses("FP3182", "utf-8"):
        load(folder, "captions", ", encoding='utf-8'")
    text.unlink()
    with refuses("FP3062", 1, "00.png"):
        load(folder, "captions")
    assert len(load(folder, "captions", ", incomplete=drop").train) == 7
    (folder / "lone.txt").write_text("x")
    with refuses("FP3414", 1, "lone.txt"):
        load(folder, "captions")
    (folder / "lone.txt").unlink()
    text.write_text("x")
    for content, words in ((b"no image", ("FP3059", "00.png")), (kept[:60], ("FP3059", "00.png"))):
        image.write_bytes(content)
        with refuses(*words):
            load(folder, "towers")
    Image.new("RGB", (4, 4)).save(image)
    with refuses("FP3420", 1, "00.png"):
        load(folder, "towers")
    (folder / "11.heic").write_bytes(b"x")
    with refuses("FP3049", "11.heic"):
        load(folder, "towers")
    with refuses("FP3055"):
        load(folder / "nowhere", "towers")
    with refuses("FP1731", "regression"):
        load(folder, "regression")
    with refuses("FP3051", "task=captions"):
        load_dataset(f"file(path={str(folder)!r})")


def test_wrong_masks_are_one_sentence(folder):
    mask = folder / "00.mask.png"
    Image.new("L", (5, 5)).save(mask)
    with refuses("FP3059", "00.mask.png", 5):
        load(folder, "patch_labels")
    Image.new("RGB", (SIDE, SIDE)).save(mask)
    with refuses("FP3059", "00.mask.png", "RGB"):
        load(folder, "patch_labels")
    Image.new("L", (SIDE, SIDE), 7).save(mask)
    with refuses("FP3419", 7, 2):
        load(folder, "patch_labels", ", labels='ground,square'")
    for file in folder.glob("*.mask.png"):
        Image.new("L", (SIDE, SIDE), VOID).save(file)
    with refuses("FP3416", 0):
        load(folder, "patch_labels")
    with refuses("FP1106"):
        load(folder, "patch_labels", ", labels=ground")


def test_a_dataset_s_masks_are_checked():
    images = np.ones((2, 8, 8), np.uint8)
    with refuses("FP3412", 2, 1):
        Rows(images, masks=np.zeros((1, 8, 8), np.uint8))

    class Source:
        def __init__(self, rows):
            self.rows = rows

        def load(self):
            return Dataset("mine", "image", "patch_labels", self.rows, self.rows, ("a", "b"), "dinov2_small")

    from fedpeft.data.rows import load_source

    load_source(Source(Rows(images, masks=np.ones((2, 8, 8), np.uint8))), "mine")
    for masks, code in ((None, "FP3417"), (np.ones((2, 4, 4), np.uint8), "FP3418")):
        with refuses(code):
            load_source(Source(Rows(images, masks=masks)), "mine")


def test_what_lies_beside_images_is_found(folder, tmp_path):
    assert find_companion_beside(folder).column == "mask"
    for file in folder.glob("*.mask.png"):
        file.unlink()
    assert find_companion_beside(folder).column == "text"
    assert find_companion_beside(tmp_path / "nowhere") is None

"""Folders of pictures: by class and by a table, and what a user finds wrong in them."""

from __future__ import annotations

import unicodedata
import warnings

import numpy as np

from fedpeft.data.image_folders import list_unlabeled_pictures, read_pixels
from fedpeft.data.rows import load_dataset
from fedpeft.reporting.console import silence_libraries
from tests.refusals import refuses


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def picture(path, colour, size=(20, 30)):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_pictures_by_class_and_by_table(tmp_path):
    for i in range(6):
        picture(tmp_path / "by_class" / "red" / f"{i}.png", (200, 0, 0), (10 + i, 30))
        picture(tmp_path / "by_class" / "blue" / f"{i}.png", (0, 0, 200))
        picture(tmp_path / "table" / f"{i}.png", (0, 100 * (i % 2), 0))
    found = load_dataset(f"file(path={str(tmp_path / 'by_class')!r}, side=16)")
    assert (found.kind, found.task, found.label_names) == ("image", "classification", ("blue", "red"))
    assert found.train.inputs.shape == (10, 16, 16, 3)
    assert found.train.inputs.dtype == np.uint8
    reds = found.train.inputs[found.train.labels == 1]
    assert (reds == np.array([200, 0, 0])).all()
    table = "file_name,kind,who\n" + "".join(
        f"{i}.png,{'dark' if i % 2 == 0 else 'light'},p{i % 3}\n" for i in range(6)
    )
    write(tmp_path / "table" / "metadata.csv", table)
    found = load_dataset(f"file(path={str(tmp_path / 'table')!r}, label=kind, owner=who)")
    assert found.label_names == ("dark", "light")
    assert found.train.owners is not None


def test_pictures_with_numbers_and_with_several_labels(tmp_path):
    kinds = {"number": ("0.5", "1.25", "3.75"), "labels": ("wet; loud", "loud", "wet")}
    for kind, values in kinds.items():
        for i in range(12):
            picture(tmp_path / kind / f"{i}.png", (20 * i, 0, 0))
        table = "file_name,label\n" + "".join(f"{i}.png,{values[i % 3]}\n" for i in range(12))
        write(tmp_path / kind / "metadata.csv", table)
    found = load_dataset(f"file:{tmp_path / 'number'}")
    assert (found.kind, found.train.targets, found.default_model) == ("image", "numbers", "dinov2_small")
    assert set(found.train.labels) <= {0.5, 1.25, 3.75}
    assert found.task.startswith("regression(")
    reds = found.train.inputs[:, 0, 0, 0].astype(int) // 20
    np.testing.assert_array_equal(found.train.labels, np.array([0.5, 1.25, 3.75])[reds % 3])  # each has its own number
    found = load_dataset(f"file(path={str(tmp_path / 'labels')!r}, label_type=labels)")
    assert (found.kind, found.task, found.label_names) == ("image", "multi_label", ("loud", "wet"))


def test_pictures_that_cannot_be_used_are_one_sentence(tmp_path):
    picture(tmp_path / "loose" / "a.png", (0, 0, 0))
    with refuses("FP3051", "a.png"):
        load_dataset(f"file:{tmp_path / 'loose'}")
    write(tmp_path / "loose" / "metadata.csv", "file_name,label\n../../a.png,x\n")
    with refuses("FP3054"):
        load_dataset(f"file:{tmp_path / 'loose'}")
    for name in "ab":
        write(tmp_path / "bad" / "one" / f"{name}.png", b"no picture")
        write(tmp_path / "bad" / "two" / f"{name}.png", b"no picture")
    with refuses("FP3059", "png"):
        load_dataset(f"file(path={str(tmp_path / 'bad')!r}, test_fraction=0.5)")


def test_no_picture_is_passed_over_in_silence(tmp_path):
    for i in range(6):
        picture(tmp_path / ("red", "blue")[i % 2] / f"{i}.png", (0, 0, 0))
    spec = f"file:{tmp_path}"
    telephone = tmp_path / "red" / "IMG_1.HEIC"
    write(telephone, b"ftypheic")
    with refuses("FP3049", "red", "1", "IMG_1.HEIC"):
        load_dataset(spec)
    with refuses("FP3049", "IMG_1.HEIC"):
        list_unlabeled_pictures(tmp_path)
    telephone.unlink()
    picture(tmp_path / "red" / "2026" / "a.png", (0, 0, 0))
    with refuses("FP3050", "2026", "red"):
        load_dataset(spec)
    (tmp_path / "red" / "2026").rename(tmp_path / "green")
    (tmp_path / "red" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with refuses("FP3058", "gone.png"):
        load_dataset(spec)


def test_a_folder_of_pictures_that_are_not_read_is_no_folder_without_pictures(tmp_path):
    write(tmp_path / "red" / "a.heic", b"ftypheic")
    with refuses("FP3049"):
        load_dataset(f"file:{tmp_path}")


def test_accents_are_the_same_however_a_file_system_writes_them(tmp_path):
    apart = unicodedata.normalize("NFD", "gr\u00fcn")
    for i in range(6):
        picture(tmp_path / "classes" / (apart, "rot")[i % 2] / f"{i}.png", (0, 0, 0))
        picture(tmp_path / "table" / f"{apart} {i}.png", (0, 0, 0))
    assert load_dataset(f"file:{tmp_path / 'classes'}").label_names == ("gr\u00fcn", "rot")
    rows = "".join(f"gr\u00fcn {i}.png,{'ab'[i % 2]}\n" for i in range(6))
    write(tmp_path / "table" / "metadata.csv", f"file_name,label\n{rows}")
    assert load_dataset(f"file:{tmp_path / 'table'}").label_names == ("a", "b")


def test_all_pictures_that_are_wrong_are_counted_and_a_table_says_what_it_has(tmp_path):
    for i in range(12):
        picture(tmp_path / ("red", "blue")[i % 2] / f"{i}.png", (0, 0, 0))
    for i in range(7):
        write(tmp_path / ("red", "blue")[i % 2] / f"{i}.png", b"no picture")
    with refuses("FP3059", "FP3059", "FP3059", "FP3059", "FP3059", "and 2 more of 12"):
        read_pixels([str(p) for p in sorted(tmp_path.glob("*/*.png"))], 8)
    write(tmp_path / "metadata.csv", "file,label\nred/8.png,red\n")
    with refuses("FP3052", "line 2", "file_name", "file', 'label"):
        load_dataset(f"file:{tmp_path}")


def test_a_palette_with_transparency_warns_nobody(tmp_path):
    from PIL import Image

    Image.linear_gradient("L").convert("P").save(tmp_path / "a.png", transparency=bytes([10] * 256))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        silence_libraries()
        read_pixels([str(tmp_path / "a.png")], 8)
    assert told == []

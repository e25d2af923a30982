"""Pictures of files: what their numbers mean, and what a model sees of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import Dinov2Config, ViTConfig, ViTModel

from fedpeft.data import image_folders
from fedpeft.data.cached_rows import read_as
from fedpeft.data.clip_folders import read_clips
from fedpeft.data.image_folders import read_pixels
from fedpeft.data.images import convert_images, count_patches
from fedpeft.data.rows import load_dataset
from fedpeft.models.base_model import resolve_model
from fedpeft.models.patch_features import compute_patch_features
from tests.refusals import refuses

GREY = (0, 257 * 40, 65535)


def read(file, side=8):
    """Return the gray values of an image's columns as they are read."""
    found = read_pixels([str(file)], side)[0]
    assert (found == found[:1]).all()
    assert (found == found[..., :1]).all()
    return found[0, :, 0].tolist()


def columns(values, kind):
    """Return an image whose columns have three values, a third each."""
    return Image.fromarray(np.repeat(np.array(values), 3)[None].repeat(9, 0).astype(kind))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled_and_not_cut(suffix, tmp_path):
    columns(GREY, np.uint16).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        assert opened.mode.startswith("I")
    assert read(tmp_path / f"a.{suffix}", 9) == [0] * 3 + [40] * 3 + [255] * 3


@pytest.mark.parametrize(
    ("values", "kind"), [(GREY, np.int32), ((0.0, 40 / 255, 1.0), np.float32), ((0.0, 40.0, 255.0), np.float32)]
)
def test_grey_of_32_bits_is_scaled_where_its_range_is_known(values, kind, tmp_path):
    columns(values, kind).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif", 9) == [0] * 3 + [40] * 3 + [255] * 3


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ((0, 5, 65536), np.int32, "0 to 65536, but must range from 0 to 65,535"),
        ((-1, 5, 9), np.int32, "-1 to 9"),
        (
            (0.0, 1.0, 4095.0),
            np.float32,
            "to 4095, but must range from 0 to 1 or 0 to 255",
        ),
        ((0.0, np.nan, 1.0), np.float32, "nan to nan"),
    ],
)
def test_a_picture_of_no_known_range_is_refused_by_name(values, kind, said, tmp_path):
    columns(values, kind).save(tmp_path / "scan.tif")
    with refuses("FP3059", "scan.tif", said):
        read_pixels([str(tmp_path / "scan.tif")], 8)


def test_a_picture_of_16_bits_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    columns(GREY, np.uint16).save(tmp_path / "a.png", exif=exif)
    found = read_pixels([str(tmp_path / "a.png")], 9)[0, :, 0, 0]
    assert found.tolist() == [0] * 3 + [40] * 3 + [255] * 3


def dino(folder, patch=14, own=518):
    """Write the configuration of a DINOv2 to the folder, and return it."""
    Dinov2Config(num_hidden_layers=1, patch_size=patch, image_size=own).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pixels", [8, 28])
@pytest.mark.parametrize("patch", [4, 14])
def test_digits_and_fashion_mnist_are_fed_as_ever(pixels, patch, tmp_path):
    """To the last bit: results of them are committed."""
    images = np.random.default_rng(0).integers(0, 256, (70, pixels, pixels)).astype(np.uint8)
    before = torch.from_numpy(np.asarray(images, dtype=np.float32)) / 255
    before = before[..., None].expand(*before.shape, 3).permute(0, 3, 1, 2)
    before = functional.interpolate(before, size=(4 * patch, 4 * patch), mode="bilinear", align_corners=False)
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found, tokens = convert_images(images, dino(tmp_path, patch))
    assert tokens == 17
    assert found.tobytes() == ((before - mean) / deviation).numpy().tobytes()
    assert read_as(images) == {}


@pytest.mark.parametrize(
    ("side", "patch", "own", "patches"),
    [
        (8, 14, 518, 4),
        (64, 14, 518, 4),
        (64, 8, 224, 4),
        (70, 14, 518, 5),
        (224, 14, 518, 16),
        (512, 14, 518, 36),
        (512, 16, 224, 14),
        (200, 4, 16, 4),
        (80, 32, 224, 4),
    ],
)
def test_the_model_sees_as_many_patches_as_a_picture_has_pixels_for(side, patch, own, patches, tmp_path):
    folder = dino(tmp_path, patch, own)
    assert count_patches(side, folder) == (patches, patch)
    pixels, tokens = convert_images(np.zeros((1, side, side, 3), np.uint8), folder)
    assert pixels.shape == (1, 3, patches * patch, patches * patch)
    assert tokens == patches**2 + 1


def test_stripes_that_a_model_can_not_see_are_grey_and_no_other_stripes():
    images = np.zeros((1, 200, 200, 3), np.uint8)
    images[:, :, ::2] = 255
    pixels, _ = convert_images(images, resolve_model("tiny_vision"))  # 16 pixels a side
    assert np.ptp(pixels[0, 0, :, 1:-1]) < 0.1
    assert read_as(images) != {}


def test_the_side_of_a_file_decides_what_is_seen(tmp_path):
    striped = np.zeros((224, 224), np.uint8)
    striped[:, ::2] = 255
    for name, picture in (("stripes", striped), ("grey", striped // 2)):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    dino(tmp_path)
    for side, contrast, expected in ((64, 0.0, 17), (224, 2.2, 257)):
        found = load_dataset(f"file(path={str(tmp_path)!r}, side={side})").train
        pixels, tokens = convert_images(found.inputs[found.labels == 1], tmp_path)
        assert tokens == expected
        assert float(pixels[:, 0].std()) == pytest.approx(contrast, abs=0.1)


def test_features_of_a_large_image_are_pooled_to_as_many_vectors(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ViTModel(ViTConfig(image_size=64, patch_size=8, **small)).save_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 72, 72, 3)).astype(np.uint8)
    assert count_patches(72, tmp_path) == (8, 8)
    assert compute_patch_features(images, tmp_path).shape == (3, 16, 16)
    assert compute_patch_features(images, tmp_path, 1).shape == (3, 1, 16)


def test_more_pixels_than_memory_are_refused(tmp_path, monkeypatch):
    """A server chooses side and frames, and a client can have any number of images."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(image_folders, "get_free_memory", lambda _: 3 * 8 * 8 * 3)
    assert len(read_pixels([str(tmp_path / "a.png")] * 3, 8)) == 3
    with refuses("FP3583", 1, 1, 16):
        read_pixels([str(tmp_path / "a.png")], 16)
    with refuses("FP3583", 4, 4, 8):
        read_clips([str(tmp_path)], 8, 4)

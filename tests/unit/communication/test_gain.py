"""Updates arrive at about their length, whatever the optimizer that made them and however few bits they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.codecs import adaptive
from fedpeft.communication.decoding import decode
from fedpeft.communication.uplink import parse_uplink
from tests.communication.vectors import LARGER, LORA, along, flat, lora_state, rows, through
from tests.refusals import refuses


@pytest.mark.parametrize("front", ["", "rotate | ", "topk(fraction=0.5) | "])
def test_gain_stretches_what_arrives(front):
    state = lora_state()
    codecs = [parse_codec(f"{front}adaptive(bits=1.0, gain={g}) | rans") for g in ("none", "length")]
    plain, stretched = (flat(decode(codec.encode(state, seed=3), LORA)) for codec in codecs)
    ratio = float(stretched @ plain / (plain @ plain))
    assert 1.05 < ratio < 4
    torch.testing.assert_close(stretched, ratio * plain)
    assert codecs[1].remove_gain() == codecs[0]
    assert parse_codec("sign").remove_gain() == parse_codec("sign")
    with refuses("FP1052"):
        parse_codec("lowrank | adaptive(gain=length) | rans")
    with refuses("FP1053"):
        parse_codec("adaptive(rounding=dither, gain=length)")
    with refuses("FP1227", "one of 'none', 'length", "1.7"):
        parse_codec("adaptive(gain=1.7)")


def like_an_optimizers(optimizer: str, count: int) -> np.ndarray:
    """Draw an update's entries (count,): of like magnitude for Adam, heavy-tailed for SGD, equal for signs."""
    draws = np.random.default_rng(count)
    signs = draws.choice([-1.0, 1.0], count)
    magnitudes = {
        "adam": np.abs(draws.normal(1, 0.4, count)),
        "sgd": np.abs(draws.standard_t(3, count)),
        "normal": np.abs(draws.standard_normal(count)),
        "signs": np.ones(count),
    }
    return (1e-3 * signs * magnitudes[optimizer]).astype(np.float32)


@rows("optimizer", ["adam", "sgd", "normal", "signs"])
@rows("preset", ["medium", "small", "tiny"])
def test_an_update_arrives_at_its_length_whatever_optimizer_made_it(optimizer, preset):
    """With constant gains of 1.1, 1.7 and 3 from 0 to 1.5 of it arrived, so presets were compared at other rates."""
    x = like_an_optimizers(optimizer, 60_000)
    plain = through(str(parse_codec(preset).remove_gain()), x)
    wanted = min(1, 4 * along(x, plain))  # stretched by 4 at most
    assert along(x, through(preset, x)) == pytest.approx(wanted, rel=1e-3)
    assert wanted == 1 or preset == "tiny"


@rows("optimizer", ["adam", "sgd", "normal", "signs"])
@rows("count", [20, 548, 1000, 5000])
@rows("text", ["medium", "small", "tiny", "grid(bits=4.0) | rans", "grid(bits=1.94) | rans", "widths(bits=0.3)"])
def test_small_adapters_do_not_arrive_as_zeros(text, count, optimizer):
    """Header and tables take more than the whole budget; entries of one magnitude arrive together or not at all."""
    x = like_an_optimizers(optimizer, count)
    least = 1 / 16 if "(" in text else 1 / 4  # presets stretch it by up to 4
    assert along(x, through(text, x)) > 0.95 * least


def test_a_budget_that_can_be_kept_is_kept():
    x = like_an_optimizers("normal", 60_000)
    for preset, bits in (("medium", 2.0), ("small", 0.99), ("tiny", 0.312)):
        assert 0.95 * bits < 8 * len(parse_codec(preset).encode({"x": torch.from_numpy(x)})) / len(x) <= bits


@rows("optimizer", ["adam", "sgd", "normal", "signs"])
@rows("count", [20, 548, 20_000])
@rows("preset", ["medium", "small", "tiny"])
@rows("memory", ["ef14", "ef21"])
def test_behind_a_memory_codecs_contract(memory, preset, count, optimizer):
    """norm(x - x') < norm(x), or what the memory holds would grow; with a gain it may not be so."""
    codec = parse_uplink(f"{memory} | {preset}").codec
    assert codec.gain == "none"
    x = like_an_optimizers(optimizer, count)
    assert np.linalg.norm(x - through(str(codec), x)) < 0.98 * np.linalg.norm(x)


def arrived_mean(kind: str, preset: str) -> tuple[float, float]:
    """Return the share of the true mean of 12 updates that arrives, and the relative squared error of the mean.

    Half of each update is common to all clients.
    """
    draws, count = np.random.default_rng(7), 20_000
    tails = {"adam": lambda: draws.normal(1, 0.4, count), "sgd": lambda: draws.standard_t(3, count)}[kind]
    common = draws.choice([-1.0, 1.0], count) * tails()
    own = [draws.choice([-1.0, 1.0], count) * tails() for _ in range(12)]
    updates = [np.where(draws.random(count) < 0.5, common, other).astype(np.float32) for other in own]
    mean = np.mean(updates, axis=0)
    back = np.mean([through(preset, x) for x in updates], axis=0)
    return along(mean, back), float(np.sum((back - mean) ** 2) / np.sum(mean**2))


def test_tiny_depends_on_the_optimizer_and_a_higher_limit_adds_more_error_than_length(monkeypatch):
    """As the docstring of `adaptive` and docs/communication.md state."""
    share, error = arrived_mean("adam", "tiny")
    assert share < 0.75 < 0.9 < arrived_mean("sgd", "tiny")[0]
    assert arrived_mean("adam", "medium")[0] > 0.95
    monkeypatch.setattr(adaptive, "MAX_GAIN", np.inf)
    longer, worse = arrived_mean("adam", "tiny")
    assert share < longer < 1
    assert worse - error > longer - share
    page = Path(__file__).parent.parent.parent.parent / "docs" / "communication.md"
    for text in (adaptive.__doc__, page.read_text(encoding="utf-8")):
        assert "depends on the optimizer" in " ".join(text.split())


@pytest.mark.parametrize(("preset", "bounds"), [("medium", (0.95, 1.05)), ("small", (0.9, 1.1)), ("tiny", (0.8, 1.1))])
def test_the_mean_of_many_updates_arrives_at_about_its_length(preset, bounds):
    """Without gain it does not: at 0.92, 0.68 and 0.30 of it. What they share is small in each and loses most."""
    common = lora_state(seed=99, shapes=LARGER)
    updates = [{n: 0.3 * common[n] + t for n, t in lora_state(seed=seed, shapes=LARGER).items()} for seed in range(12)]
    exact = torch.stack([flat(update) for update in updates]).mean(0)
    codec = parse_codec(preset)
    mean = torch.stack([flat(decode(codec.encode(update), LARGER)) for update in updates]).mean(0)
    assert bounds[0] < float(mean @ exact / (exact @ exact)) < bounds[1]

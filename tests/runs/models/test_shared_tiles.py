"""Two machines that share object storage and no file system: one reads what the other has computed of frozen layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import BertConfig, BertModel

from fedpeft.data.examples import TokenRows
from fedpeft.machine.shared_cache import VARIABLE, get_shared_cache
from fedpeft.models.frozen_blocks import ActivationCache
from fedpeft.models.shared_tiles import fetch_missing_tiles, offer
from fedpeft.simulate import simulate
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses


@pytest.fixture
def base():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertModel(config).eval()


def store(folder, depth=1):
    random = np.random.default_rng(0)
    lengths = random.integers(2, 9, size=70)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = TokenRows(random.integers(1, 50, size=offsets[-1]), offsets, np.zeros(70, dtype=np.int64), 0)
    return ActivationCache(folder / "frozen-rows", rows, depth, 8, torch.float32)


@pytest.mark.fast
@pytest.mark.parametrize("depth", [0, 1])
def test_tiles_of_another_machine_are_read_and_the_rest_is_missing(tmp_path, monkeypatch, base, depth):
    monkeypatch.setenv(VARIABLE, f"memory://{tmp_path.name}-{depth}")
    one, two = (store(tmp_path / name, depth) for name in ("one", "two"))
    assert fetch_missing_tiles(one) == [0, 1, 2]
    for tile in (0, 2):
        one.fill(tile, base)
        offer(one, [tile])
    assert fetch_missing_tiles(two) == [1]
    two.fill(1, base)
    one.fill(1, base)
    assert fetch_missing_tiles(two) == []
    assert torch.equal(one.read_features(range(70)), two.read_features(range(70)))
    if depth:
        assert torch.equal(one.read_hidden(range(70), 8), two.read_hidden(range(70), 8))


@pytest.mark.fast
def test_features_that_are_no_numbers_are_refused_and_not_kept(tmp_path, monkeypatch, base):
    monkeypatch.delenv(VARIABLE, raising=False)
    rows = store(tmp_path)
    assert fetch_missing_tiles(rows) == [0, 1, 2]
    base.embeddings.position_embeddings.weight.data[5:] = float("inf")  # of longer rows than a model is tried on
    with refuses("FP4022", "BertModel", "NaN or infinite"):
        rows.fill(0, base)
    with refuses("FP4022", "8 wide", "16"):
        replace(rows, width=16).fill(2, base)
    assert fetch_missing_tiles(rows) == [0, 1, 2]


@pytest.mark.fast
def test_a_tile_of_another_size_is_computed_anew(tmp_path, monkeypatch, base):
    monkeypatch.setenv(VARIABLE, f"memory://{tmp_path.name}")
    get_shared_cache().write("frozen-rows/0000000", b"of another version")
    assert fetch_missing_tiles(store(tmp_path)) == [0, 1, 2]


@pytest.mark.fast
def test_without_a_shared_cache_all_is_local(tmp_path, monkeypatch, base):
    monkeypatch.delenv(VARIABLE, raising=False)
    one, two = (store(tmp_path / name) for name in ("one", "two"))
    assert len(fetch_missing_tiles(one)) == 3
    one.fill(0, base)
    offer(one, [0])
    assert len(fetch_missing_tiles(two)) == 3


@pytest.mark.slow
def test_a_second_machine_computes_no_frozen_layer_and_has_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"file://{tmp_path}/bucket")
    computed = []
    fill = ActivationCache.fill
    monkeypatch.setattr(
        ActivationCache, "fill", lambda self, tile, base: (computed.append(tile), fill(self, tile, base))
    )
    settings = {"clients": 4, "peft": "lora(rank=2, layers=1)", "workers": 1, "rounds": 2, "tokens": 16}
    counts, found = [], []
    for name in ("one", "two"):
        monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / name))
        summary = simulate(RunConfig(dataset="tiny", **settings), tmp_path / f"run-{name}", False, Console(quiet=True))
        counts.append(len(computed))
        found.append((summary.quality.accuracy, summary.quality.loss, summary.quality.baseline_accuracy))
    assert counts[0] > 0
    assert counts[1] == counts[0]
    assert found[0] == found[1]

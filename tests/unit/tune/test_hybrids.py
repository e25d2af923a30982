"""The space of hybrids: which methods, in which blocks, how large; and the budget, under which nothing large trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft.hybrid import Hybrid
from fedpeft.simulation.rows import SimulatedRows
from fedpeft.tune import runner
from fedpeft.tune.__main__ import place_of
from fedpeft.tune.hybrids import OFF, parse_hybrid_space
from fedpeft.tune.sampling import NEVER_TRAINED
from fedpeft.tune.sizes import Size, Sizes, check_smallest
from tests.refusals import refuses
from tests.tune.made import BASE, InProcess, conducted, search_of

METHODS = {"lora": {"rank": [2, 4], "alpha": 8}, "bottleneck": {"dim": [4, 8]}, "bitfit": {}}
SPACE = parse_hybrid_space("file", METHODS)
DEPTH = 3


def test_a_hybrid_is_what_was_drawn():
    drawn = {"lora.rank": 4, "bottleneck.dim": OFF, "bitfit": "on", "block.0": True, "block.1": False, "block.2": True}
    text = SPACE.text(lambda name, among: drawn[name], DEPTH)
    assert text == "lora(alpha=8, rank=4, layers=(0, 2)) + bitfit(layers=(0, 2))"
    assert isinstance(PEFT_METHODS.build(text), Hybrid)
    alone = drawn | {"bitfit": OFF}
    assert SPACE.text(lambda name, among: alone[name], DEPTH) == "lora(alpha=8, rank=4, layers=(0, 2))"


def test_each_method_may_have_blocks_of_its_own():
    space = parse_hybrid_space("file", {"blocks": "each", "lora": {"rank": [2, 4]}, "bitfit": {}})
    drawn = {"lora.block.0": True, "bitfit.block.1": True, "bitfit.block.2": True, "lora.rank": 2, "bitfit": "on"}
    text = space.text(lambda name, among: drawn.get(name, False), DEPTH)
    assert text == "lora(rank=2, layers=(0,)) + bitfit(layers=(1, 2))"


@given(st.data())
def test_every_draw_is_a_hybrid_that_can_be_built_or_trains_nothing(data):
    drawn = {}

    def draw(name, among):
        drawn[name] = data.draw(st.sampled_from(among.values))
        return drawn[name]

    text = SPACE.text(draw, DEPTH)
    blocks = [i for i in range(DEPTH) if drawn[f"block.{i}"]]
    on = [name for name in ("lora.rank", "bottleneck.dim", "bitfit") if drawn[name] != OFF]
    assert set(drawn) == {"lora.rank", "bottleneck.dim", "bitfit", "block.0", "block.1", "block.2"}
    assert (text is None) == (not blocks or not on)
    if text is not None:
        method = PEFT_METHODS.build(text)
        parts = method.parts if isinstance(method, Hybrid) else (method,)
        assert len(parts) == len(on)
        assert {part.layers for part in parts} == {tuple(blocks)}


# ------------------------------------------------------------------------------------------------------------ sizes

TABLES = "[hybrid.lora]\nrank = [1, 2, 4]\n[hybrid.bitfit]\n"


def parameters_of(sizes, search, peft):
    return sizes.of(replace(search.build_corner({}), peft=peft)).parameters


def test_sizes_are_counted_before_anything_is_trained(tmp_path):
    search = search_of(tmp_path, BASE + TABLES)
    sizes = Sizes(tmp_path)
    assert sizes.count_blocks(search.build_corner({})) == 3
    one, two, four = (parameters_of(sizes, search, f"lora(rank={r}, layers=(1,))") for r in (1, 2, 4))
    assert four - two == 2 * (two - one) > 0
    both = parameters_of(sizes, search, "lora(rank=1, layers=(1,)) + bitfit(layers=(1,))")
    assert both > one
    size, half = (sizes.of(replace(search.build_corner({}), codec=codec)) for codec in ("fp32", "bf16"))
    assert half.parameters == size.parameters < half.bytes < size.bytes < 4 * size.parameters + 1000
    with refuses("FP1482", "3 parameters", "layers=(2,)"):
        check_smallest(search_of(tmp_path, "budget = {parameters = 3}\n" + BASE + TABLES), sizes, 3)


MODELS = ["tiny", "tiny(seed=1)", "tiny(seed=2)"]


@pytest.mark.parametrize(
    ("model", "space"),
    [("", f"model = {MODELS}\n"), ('model = "{base}"\n', f"base = {MODELS}\n")],
)
def test_models_of_a_search_have_the_same_number_of_blocks(tmp_path, monkeypatch, model, space):
    tiny, deep, deeper = MODELS
    found = {tiny: 3, deep: 3, deeper: 4}
    monkeypatch.setattr(Sizes, "count_blocks", lambda _sizes, config: found[config.model])
    text = BASE.replace('model = "tiny"\n', model) + "[search]\n" + space + "[hybrid.lora]\nrank = [1, 2]\n"
    folder = tmp_path / "out"
    folder.mkdir()
    with refuses("FP1481", tiny, "3", deeper, "4"):
        place_of(search_of(tmp_path, text), folder, 1, Console(quiet=True))
    found[deeper] = 3
    assert place_of(search_of(tmp_path, text), folder, 1, Console(quiet=True)).blocks == 3


def test_rows_are_read_once_for_tokens_and_sizes(tmp_path, monkeypatch):
    read, made = [], SimulatedRows.load
    monkeypatch.setattr(SimulatedRows, "load", lambda *given: read.append(given) or made(*given))
    text = BASE.replace('model = "tiny"\n', "") + '[search]\nmodel = ["tiny", "tiny(seed=1)"]\n'
    (tmp_path / "out").mkdir()
    place_of(
        search_of(tmp_path, "budget = {bytes = 100_000}\n" + text + "[hybrid.lora]\nrank = [1, 2]\n"),
        tmp_path / "out",
        1,
        Console(quiet=True),
    )
    assert len(read) == 1


class Known:
    """Sizes that take no time: 100 for each rank and block."""

    def of(self, config):
        method = PEFT_METHODS.build(config.peft)
        lora = [part for part in getattr(method, "parts", (method,)) if hasattr(part, "rank")]
        count = sum(100 * part.rank * len(part.layers) for part in lora)
        return Size(count, 4 * count)


def test_what_is_over_the_budget_is_never_trained_and_counts_as_no_trial(tmp_path):
    text = (
        'trials = 8\nstartup = 4\npruner = "none"\nbudget = {bytes = 800}\n'
        + BASE
        + "[hybrid.lora]\nrank = [1, 2, 4]\n"
    )
    starts = InProcess()
    place = conducted(search_of(tmp_path, text), tmp_path / "out", starts, sizes=Known(), blocks=DEPTH)
    trials = place.study.get_trials()
    never = {t.number: t.user_attrs[NEVER_TRAINED] for t in trials if NEVER_TRAINED in t.user_attrs}
    assert len(trials) - len(never) == 8
    over = [n for n, why in never.items() if "over the budget of 800 bytes" in why]
    assert over
    assert all(trials[n].user_attrs["size"]["bytes"] > 800 for n in over)
    assert all(t.user_attrs["size"]["bytes"] <= 800 for t in trials if t.number not in never)
    assert not set(starts.done) & set(never)


def test_a_budget_that_nothing_fits_ends_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "IN_A_ROW", 5)
    text = "budget = {parameters = 1}\n" + BASE + "[hybrid.lora]\nrank = [1, 2]\n"
    starts = InProcess()
    with refuses("FP1466", "5", "FP1465", "1 parameters"):
        conducted(search_of(tmp_path, text), tmp_path / "out", starts, sizes=Known(), blocks=DEPTH)
    assert starts.done == {}

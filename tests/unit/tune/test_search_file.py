"""The file of a search: what it describes, and what is wrong with it in one sentence."""

from __future__ import annotations

import pytest

from tests.refusals import refuses
from tests.tune.made import BASE, TEXT, search_of

ONE = BASE + "[search]\nlearning_rate = {low = 1e-4, high = 1e-2}\n"
SWAPPED = "alpha = [8, 16]\nrank = [2, 4]"
HYBRID = BASE + "[hybrid.lora]\nrank = [2, 4]\n"


def test_names_in_braces_are_filled_in_where_they_stand(tmp_path):
    text = BASE + (
        'optimizer = "adamw(warmup={warmup})"\n[search]\nwarmup = {low = 0, high = 8, step = 4}\n'
        'peft = ["lora(rank={rank}, alpha=16)", "ia3"]\nrank = [2, 4]\n'
    )
    search = search_of(tmp_path, text)
    drawn = {"warmup": 4, "rank": 2, "peft": "lora(rank={rank}, alpha=16)"}
    asked = []

    def draw(name, among):
        asked.append(name)
        return drawn[name]

    config = search.config(draw)
    assert (config.optimizer, config.peft) == ("adamw(warmup=4)", "lora(rank=2, alpha=16)")
    assert sorted(asked) == sorted(drawn)
    drawn["peft"] = "ia3"
    asked.clear()
    assert search.config(draw).peft == "ia3"
    assert "rank" not in asked  # nothing is drawn that stands nowhere


def test_a_trial_is_validated_in_every_round_unless_the_file_says_otherwise(tmp_path):
    assert search_of(tmp_path, ONE).build_corner({}).measure == "validation(every=1)"
    text = ONE.replace("[search]", 'measure = "validation(every=2)"\n[search]')
    assert search_of(tmp_path, text).build_corner({}).measure == "validation(every=2)"


def test_more_trials_are_the_same_search_and_other_ranges_another(tmp_path):
    one = search_of(tmp_path, ONE)
    assert search_of(tmp_path, 'trials = 90\nquestion = "?"\n' + ONE).identity == one.identity
    for other in ("seed = 1\n" + ONE, ONE.replace("1e-2", "2e-2"), ONE.replace("rounds = 4", "rounds = 5")):
        assert search_of(tmp_path, other).identity != one.identity


@pytest.mark.parametrize(
    ("text", "was", "now"),
    [
        (ONE, "low = 1e-4, high = 1e-2", "low = 1.0000001e-4, high = 1e-2"),
        (BASE + "[search]\nlearning_rate = {low = 1, high = 3}\n", "high = 3", "high = 3.0"),
        (BASE + 'peft = "lora(rank={r})"\n[search]\nr = [2, 4]\n', "[2, 4]", '["2", "4"]'),
        (BASE + "[hybrid.lora]\nrank = [2, 4]\nalpha = [8, 16]\n", "rank = [2, 4]\nalpha = [8, 16]", SWAPPED),
    ],
)
def test_ranges_that_read_alike_are_other_ones(tmp_path, text, was, now):
    one, other = search_of(tmp_path, text), search_of(tmp_path / "other", text.replace(was, now))
    assert one.identity != other.identity


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BASE, ("FP1471",)),
        (
            BASE + "[search]\nlearning_rat = [1.0, 2.0]\n",
            ("FP1475", "learning_rat", "did you mean 'learning_rate"),
        ),
        (
            BASE + "[search]\nlearning_rate = {low = 0.1, high = 0.1}\n",
            ("FP1460", "0.1", "0.1"),
        ),
        (BASE + "[search]\nlearning_rate = {low = 0.0, high = 0.1, log = true}\n", ("FP1462",)),
        (BASE + "[search]\nlearning_rate = {low = 0.1}\n", ("FP1458",)),
        (BASE + "[search]\nlearning_rate = {low = 1, hi = 2}\n", ("FP1424", "hi")),
        (BASE + "[search]\nbatch_size = {low = 1, high = 4, step = 2}\n", ("FP1463", "2", "1", "4")),
        (BASE + f"[search]\nbatch_size = {{low = 1, high = {10**400}}}\n", ("FP1458",)),
        (BASE + "[search]\nlearning_rate = {low = -1e308, high = 1e308}\n", ("FP1461",)),
        (BASE + "[search]\nlearning_rate = {low = 0.0, high = 1e300, step = 1e-300}\n", ("FP1463", "1e-300")),
        (BASE + "[search]\nbatch_size = [4]\n", ("FP1456",)),
        (BASE + "[search]\nbatch_size = [4, 4]\n", ("FP1457",)),
        (BASE + "[search]\nbatch_size = 4\n", ("FP1454",)),
        (BASE + "[search]\nbatch_size = [4, 0]\n", ("FP1227", "batch_size", "at least 1", "0")),
        (BASE + '[search]\nstrategy = ["fedit", "fedt"]\n', ("FP1074", "FP1231", "strategy", "fedt")),
        (
            BASE + "[search]\nrounds = [2, 4]\n",
            ("FP1473", "rounds", "trials are compared after the same number of rounds"),
        ),
        (BASE + "[search]\nseed = [0, 1]\n", ("FP1473", "seed")),
        (
            BASE.replace('"tiny"\nmodel', '"{d}"\nmodel') + '[search]\nd = ["tiny", "reviews"]\n',
            ("FP1472", "dataset", "d", "losses on different datasets can't be compared"),
        ),
        (BASE + 'measure = "validation(every={e})"\n[search]\ne = [1, 2]\n', ("FP1472", "measure", "e")),
        (BASE.replace("rounds = 4", 'rounds = "{r}"') + "[search]\nr = [2, 4]\n", ("FP1472", "rounds", "r")),
        (BASE + "[search]\ntokens = [16, 32]\n", ("FP1474", "tokens")),
        (BASE + 'peft = "lora(rank={rnk})"\n[search]\nrank = [2, 4]\n', ("FP1475", "rank")),
        (BASE + 'peft = "lora(rank={rank}, alpha={a})"\n[search]\nrank = [2, 4]\n', ("FP1477", "a")),
        (
            BASE + 'peft = "lora(rank={rank})"\n[search]\nrank = [2, 0]\n',
            ("FP1074", "FP1227", "rank", "at least 1 and at most 1024"),
        ),
        ("axes = {codec = ['fp32']}\n" + ONE, ("FP1467",)),
        ("seeds = [0, 1]\n" + ONE, ("FP1467",)),
        ("trails = 3\n" + ONE, ("FP1424", "trails", "did you mean 'trials")),
        ("trials = 0\n" + ONE, ("FP1227", "trials", "at least 1")),
        ('pruner = "median"\n' + ONE, ("FP1227", "pruner", "one of 'hyperband', 'halving', 'none")),
        ("first = 9\n" + ONE, ("FP1468", "9", "4")),
        ("budget = 4\n" + ONE, ("FP1469",)),
        ("budget = {parameters = 0}\n" + ONE, ("FP1470",)),
        (ONE.replace("rounds = 4", "rnds = 4"), ("FP1435", "rnds")),
        (BASE + 'peft = "lora"\n[hybrid.lora]\nrank = [2, 4]\n', ("FP1479",)),
        (
            BASE + 'optimizer = "adamw(warmup={bitfit})"\n[search]\nbitfit = [1, 2]\n[hybrid.bitfit]\n',
            ("FP1478", "bitfit", "bitfit"),
        ),
        (BASE + "[hybrid]\n", ("FP1446",)),
        (BASE + "[hybrid.loro]\nrank = [2, 4]\n", ("FP1231", "PEFT method 'loro", "did you mean 'lora")),
        (BASE + "[hybrid.adalora]\n", ("FP1450", "adalora")),
        (BASE + "[hybrid.lora]\nlayers = 2\n", ("FP1451", "layers")),
        (BASE + "[hybrid.lora]\nrank = [2, 0]\n", ("FP1453", "FP1227", "rank", "at least 1")),
        (BASE + '[hybrid.lora]\nrank = [2, "off"]\n', ("FP1452",)),
        (BASE + '[hybrid]\nblocks = "all"\n[hybrid.bitfit]\n', ("FP1445", "shared", "each")),
        (BASE + "[hybrid.lora]\n[hybrid.lora_fa]\n", ("FP1448", "FP1240")),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, words):
    with refuses(*words) as caught:
        search_of(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        ONE.replace("[search]", 'privacy = "dp_sgd(epsilon=8)"\n[search]'),
        ONE + 'privacy = ["", "user_dp(epsilon=8)"]\n',
        HYBRID.replace("[hybrid.lora]", 'privacy = "local_dp(epsilon=8)"\n[hybrid.lora]'),
    ],
)
def test_under_privacy_a_search_is_refused(tmp_path, text):
    with refuses("FP7119"):
        search_of(tmp_path, text)


def test_a_secure_sum_alone_is_no_budget(tmp_path):
    assert search_of(tmp_path, TEXT.replace("cohort = 3\n", 'cohort = 3\nprivacy = "secure_sum"\n'))

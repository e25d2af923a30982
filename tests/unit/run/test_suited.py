"""What `auto` stands for."""

from __future__ import annotations

import pytest

from fedpeft.wiring.auto_defaults import choose_method, resolve_auto
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.dataset_info import DatasetInfo
from fedpeft.wiring.profiles import ProfileTable
from fedpeft.wiring.run_spec import parse_run
from fedpeft.wiring.setup import Setup

IMAGES = DatasetInfo("image", "classification", ("a", "b"), "tiny_vision", clients=3)
TEXTS = DatasetInfo("text", "classification", ("a", "b"), "tiny", clients=3)


@pytest.mark.parametrize(
    ("facts", "settings", "method"),
    [
        (IMAGES, {}, "head2toe"),
        (IMAGES, {"strategy": "fedit(weighting=uniform)", "drift": "label_shift", "codec": "small"}, "head2toe"),
        (IMAGES, {"strategy": "flexlora"}, "lora"),
        (IMAGES, {"privacy": "dp_sgd(epsilon=8)"}, "lora"),
        (IMAGES, {"privacy": "secure_sum"}, "lora"),
        (IMAGES, {"ranks": "4*2,8*1"}, "lora"),
        (IMAGES, {"drift": "la_lora"}, "lora"),
        (IMAGES, {"attack": "sign_flip(fraction=0.3)"}, "lora"),
        (IMAGES, {"head": "centroids"}, "lora"),
        (DatasetInfo("image", "regression", None, "tiny_vision", clients=3), {}, "lora"),
        (TEXTS, {}, "lora"),
    ],
)
def test_images_with_classes_get_a_head_on_all_blocks_unless_something_is_said_of_adapters(facts, settings, method):
    config = RunConfig(**settings)
    assert choose_method(parse_run(config), facts, []) == method
    ranked = choose_method(parse_run(config), facts, [ProfileTable(count=3, rank=4)])
    assert ranked == "lora"


CORRECTED = "label_shift(least=0.55)"
LANGUAGE = DatasetInfo("text", "causal_lm", None, "tiny_lm", clients=3)


@pytest.mark.parametrize(
    ("facts", "settings", "drift"),
    [
        (TEXTS, {}, CORRECTED),
        (IMAGES, {}, CORRECTED),
        (TEXTS, {"strategy": "flexlora"}, CORRECTED),  # or rules could not be compared
        (TEXTS, {"drift": ""}, ""),
        (TEXTS, {"drift": "fedprox(mu=0.02)"}, "fedprox(mu=0.02)"),
        (TEXTS, {"head": "zero"}, ""),
        (TEXTS, {"strategy": "fedsa_lora"}, ""),
        (TEXTS, {"strategy": "ditto"}, ""),
        (TEXTS, {"privacy": "user_dp(noise_multiplier=1)", "head": "zero"}, ""),
        (TEXTS, {"privacy": "secure_sum"}, ""),
        (DatasetInfo("text", "regression", ("y",), "tiny", clients=3), {}, ""),
        (LANGUAGE, {}, ""),
    ],
)
def test_losses_are_corrected_for_classes_that_lie_apart_where_these_are_known(facts, settings, drift):
    setup = Setup.create(parse_run(RunConfig(**settings)), facts)
    assert (setup.config.drift, str(setup.drift)) == (drift, drift)


def test_the_head_of_a_method_that_is_not_known_yet_is_not_chosen_either():
    assert (resolve_auto(parse_run(RunConfig())).config.peft, resolve_auto(parse_run(RunConfig())).config.head) == (
        "auto",
        "auto",
    )
    assert resolve_auto(parse_run(RunConfig(peft="lora"))).config.head == "ridge"


@pytest.mark.parametrize(
    ("facts", "peft", "head"),
    [(IMAGES, "head2toe", "ridge(send=factor)"), (TEXTS, "lora", "ridge")],
    ids=["images", "texts"],
)
def test_a_setup_names_what_was_chosen(facts, peft, head):
    setup = Setup.create(parse_run(RunConfig()), facts)
    assert (setup.config.peft, setup.config.head, setup.method.name) == (peft, head, peft)
    assert Setup.create(parse_run(RunConfig(peft="lora(layers=1)")), facts).config.peft == "lora(layers=1)"

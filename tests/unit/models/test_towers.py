"""Two towers: what is adapted, what each row trains, and that a finished pair of towers is what was trained."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from fedpeft.data.cached_rows import convert_to_arrays, restore_examples
from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import Rows, load_dataset
from fedpeft.errors import ConfigError, ModelError
from fedpeft.models.base_model import resolve_model
from fedpeft.models.frozen_blocks import pool
from fedpeft.models.scoring import score_together
from fedpeft.models.task import find_trainable
from fedpeft.models.two_towers import HELD, Connector, augment_images, augment_texts
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.peft import saved_adapter
from fedpeft.reporting.finished_run import clone_modules
from tests.refusals import refuses

TINY = "towers(image='tiny_vision', text='tiny')"
LORA = "lora(rank=2, layers=1)"


@pytest.fixture(scope="module")
def folder():
    return resolve_model(TINY)


@pytest.fixture(scope="module")
def rows(folder):
    found = load_dataset("scenes(rows=20, validation_rows=2, test_rows=2)").train
    return TASKS.build("towers").tokenise(found, folder, 32)


def made(folder, task="towers", peft=LORA):
    built = TASKS.build(task)
    model = built.model(built.base(folder, torch.float32), None)
    method = PEFT_METHODS.build(peft)
    method.attach(model, "fp32")
    with torch.no_grad():
        for name, parameter in find_trainable(model).items():
            if name.endswith("lora_B.weight"):
                parameter.add_(0.05)
    return built, model, method


def test_the_last_blocks_of_both_towers_are_adapted_and_read(folder, rows) -> None:
    task, model, _ = made(folder)
    task.check(model)
    names = find_trainable(model)
    assert {name.split(".")[1] for name in names if name.startswith("blocks.")} == {"2"}
    assert {name.split(".")[2] for name in names if name.startswith("blocks.")} == {"image", "text"}
    batch = rows.batch(range(6))
    plain = task.base(folder, torch.float32)
    features = plain.image(pixel_values=batch["pixel_values"]).last_hidden_state.mean(1)
    text = plain.text(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    frozen = torch.stack([model.head(features), pool(text, batch["attention_mask"])], 1)
    found = model(batch)
    assert (found - frozen).abs().flatten(2).amax((0, 2)).min() > 1e-4  # the adapters act on both sides
    with model.base.disable_adapter():
        torch.testing.assert_close(model(batch), frozen)


def gradients(model, task, batch) -> set[str]:
    for parameter in model.parameters():
        parameter.grad = None
    task.row_losses(model, batch).sums.sum().backward()
    reached = [name for name, p in find_trainable(model).items() if p.grad is not None and p.grad.any()]
    return {name.split(".")[2] if name.startswith("blocks") else "connector" for name in reached}


def test_a_client_with_one_side_trains_its_own_tower(folder, rows) -> None:
    task, model, _ = made(folder)
    batch = rows.batch(range(8))
    assert gradients(model, task, batch) == {"image", "text", "connector"}
    only = {side: torch.arange(2).eq(side).expand(8, 2) for side in (0, 1)}
    assert gradients(model, task, batch | {HELD: only[0]}) == {"image", "connector"}
    assert gradients(model, task, batch | {HELD: only[1]}) == {"text"}
    for name, parameter in find_trainable(model).items():  # by --peft linear_probe
        parameter.requires_grad_(name.startswith("head."))
    assert gradients(model, task, batch | {HELD: only[1]}) == set()  # zero, and no error
    mixed = batch[HELD].clone()
    mixed[2, 1] = mixed[5, 0] = False
    whole, found = model(batch), model(batch | {HELD: mixed})
    torch.testing.assert_close(found[batch[HELD] & mixed], whole[mixed])
    pixels = batch["pixel_values"][2:3]
    alone = model.head(model.base.get_base_model().features("image", augment_images({"pixel_values": pixels})))
    torch.testing.assert_close(found[2, 1], alone[0])
    text = augment_texts({name: batch[name][5:6] for name in ("input_ids", "attention_mask")})
    torch.testing.assert_close(found[5, 0], model.base.get_base_model().features("text", text)[0])


def test_second_views_differ_and_keep_what_matters() -> None:
    pixels = torch.arange(2.0 * 3 * 16 * 16).view(2, 3, 16, 16)
    view = augment_images({"pixel_values": pixels})["pixel_values"]
    assert torch.allclose(view[:, :, 1:, 1:], 0.8 * pixels[:, :, :-1, :-1])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
    found = augment_texts({"input_ids": mask, "attention_mask": mask})["attention_mask"]
    assert found.tolist() == [[1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("task", "peft"),
    [("towers", LORA), ("towers(connector=mlp)", "bottleneck(dim=3, layers=1)"), ("towers(connector=none)", LORA)],
)
def test_what_is_saved_is_what_was_trained(folder, rows, tmp_path, task, peft) -> None:
    built, model, method = made(folder, task, peft)
    state = {name: p.detach() + 0.01 for name, p in find_trainable(model).items()}
    own = None if method.in_peft else peft
    saved_adapter.save(tmp_path, model, state, None, None, own)
    saved_adapter.put(model, state)
    with warnings.catch_warnings(action="error", category=UserWarning):  # the library's, of what it has not found
        loaded = saved_adapter.load(tmp_path, built, built.base(folder, torch.float32), 0)
    batch = rows.batch(range(4))
    torch.testing.assert_close(loaded(batch), model(batch))


def test_a_twin_has_its_blocks_in_both_places(folder) -> None:
    base = TASKS.build("towers").base(folder, torch.float32)
    made = clone_modules(base)
    assert made.image.encoder.layer[2] is made.blocks[2]["image"]
    assert made.blocks[2]["image"] is not base.blocks[2]["image"]
    assert {*made.parameters()} == {*base.parameters()}


def test_rows_come_back_from_the_cache_as_they_were(rows) -> None:
    again = restore_examples(convert_to_arrays(rows))
    one, other = rows.batch([3, 1]), again.batch([3, 1])
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_rows_with_one_side_are_no_pairs_and_equal_texts_no_negatives(folder) -> None:
    images = np.ones((5, 8, 8), np.uint8)
    images[2:] = 0
    given = Rows(images, np.array([4, 4, 4, 4, 4]), None, texts=["a b", "", "c d", "c d", "e"])
    found = TASKS.build("towers").tokenise(given, folder, 16)
    assert found.held.tolist() == [[True, True], [True, False], [False, True], [False, True], [False, True]]
    labels = found.batch(range(5))["labels"][:, 0].tolist()
    assert labels[0] == 4
    assert labels[2] == labels[3]
    assert len(set(labels)) == 4
    with refuses("FP3174"):
        TASKS.build("towers").tokenise(Rows(images, None, None, texts=["", "", "", "", ""]), folder, 16)


@pytest.mark.parametrize("peft", ["full", "prompt_tuning", "prefix_tuning(layers=1)"])
def test_what_the_towers_do_not_read_is_not_trained_in_silence(folder, peft) -> None:
    def checked() -> None:
        task, model, _ = made(folder, peft=peft)
        task.check(model)

    with pytest.raises((ConfigError, ModelError)):
        checked()


def test_towers_and_connectors_that_do_not_fit_are_refused(tmp_path) -> None:
    with refuses("FP4049"):
        Connector("none", 4, 5, torch.float32, torch.device("cpu"))
    with refuses("FP4037"):
        resolve_model("towers(image='tiny', text='tiny')")
    with refuses("FP4050"):
        TASKS.build("towers").base(resolve_model("tiny"), torch.float32)


def test_a_score_is_among_all_rows(folder, rows) -> None:
    task, model, _ = made(folder)
    scores, sides = score_together(model.eval(), task, rows)
    assert scores.count.sum() == len(rows) == len(sides.labels)
    found = model(rows.batch([7]))
    torch.testing.assert_close(sides.queries[7], torch.nn.functional.normalize(found[0, 0], dim=-1), rtol=0, atol=1e-5)


@pytest.mark.medium
def test_towers_that_did_not_know_each_other_come_to_meet(folder) -> None:
    """Images of one grey and of words that say which: recall among 12 grows from guessing to nearly all."""
    torch.manual_seed(0)
    task, model, _ = made(folder)
    greys = np.linspace(20, 235, 12).astype(np.uint8)
    images = np.broadcast_to(greys[:, None, None], (12, 16, 16)).copy()
    images[:, :8] = greys[::-1, None, None]
    texts = [f"{WORDS[i]} {WORDS[20 + i]}" for i in range(12)]
    batch = task.tokenise(Rows(images, np.arange(12), None, texts=texts), folder, 16).batch(range(12))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    before = task.row_losses(model, batch)
    for _ in range(120):
        optimizer.zero_grad()
        task.row_losses(model, batch).sums.mean().backward()
        optimizer.step()
    after = task.row_losses(model, batch)
    assert after.sums.mean() < 0.5 * before.sums.mean()
    assert before.correct.sum() <= 4
    assert after.correct.sum() >= 9

"""Captions: losses, gradients and greedy captions against plain transformers, row by row; what is saved and kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM

from fedpeft.data.cached_rows import convert_to_arrays, restore_examples
from fedpeft.data.images import convert_images
from fedpeft.data.rows import Rows, get_default_head, load_dataset
from fedpeft.data.scenes import list_scenes, parse_caption
from fedpeft.data.tokens import load_tokenizer
from fedpeft.models.answers.captioning import caption_images, generate_captions
from fedpeft.models.base_model import resolve_model
from fedpeft.models.patch_features import compute_patch_features
from fedpeft.models.task import find_trainable
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.peft import saved_adapter
from fedpeft.simulation.captions import compute_measures
from tests.refusals import refuses
from tests.scene_words import tiny_captioner

LORA = "lora(rank=2)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return resolve_model(tiny_captioner(tmp_path_factory.mktemp("captioner") / "words"))


@pytest.fixture(scope="module")
def scene_rows():
    return load_dataset("scenes(rows=20, validation_rows=2, test_rows=2, task=captions)").train


@pytest.fixture(scope="module")
def rows(folder, scene_rows):
    return TASKS.build("captions").tokenise(scene_rows, folder, 32)


def made(folder, task="captions", peft=LORA, dtype="fp32"):
    built = TASKS.build(task)
    model = built.model(built.base(folder, torch.float64 if dtype == "fp64" else torch.float32), None)
    method = PEFT_METHODS.build(peft)
    torch.manual_seed(0)
    method.attach(model, dtype)
    with torch.no_grad():
        for name, parameter in find_trainable(model).items():
            if name.endswith("lora_B.weight"):
                parameter.add_(0.05)
    return built, model.eval(), method


def seen(folder, images):
    """Last hidden states of an image's patches, (rows, 16, width), one image at a time."""
    encoder = AutoModel.from_pretrained(folder / "image").eval()
    pixels, _ = convert_images(images, folder / "image")
    with torch.no_grad():
        return torch.cat([encoder(pixel_values=torch.from_numpy(one[None])).last_hidden_state[:, 1:] for one in pixels])


def read(base, head, features, ids):
    """Logits (T, vocabulary) behind each of the tokens `ids` that follow an image, by transformers alone."""
    embedded = base.get_input_embeddings()(torch.tensor([ids]))
    before = (features.to(head.weight.dtype) @ head.weight.T + head.bias).to(embedded.dtype)
    return base(inputs_embeds=torch.cat([before[None], embedded], 1), use_cache=False).logits[0, len(before) :]


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_losses_and_gradients_are_those_of_plain_transformers(folder, scene_rows, rows, dtype) -> None:
    task, model, _ = made(folder, peft="linear_probe", dtype=dtype)
    chosen = [3, 0, 7]
    base = AutoModelForCausalLM.from_pretrained(folder / "text", dtype=next(model.base.parameters()).dtype).eval()
    head = torch.nn.Linear(48, 48, dtype=model.head.weight.dtype)
    head.load_state_dict(model.head.state_dict())
    tokenizer = load_tokenizer(folder)
    losses, counts = [], []
    for i, features in zip(chosen, seen(folder, scene_rows.inputs[chosen]), strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(scene_rows.texts[i], add_special_tokens=False)["input_ids"]]
        logits = read(base, head, features, ids)
        losses.append(
            functional.cross_entropy(logits, torch.tensor([*ids[1:], tokenizer.eos_token_id]), reduction="sum")
        )
        counts.append(len(ids))
    batch = rows.batch(chosen)
    assert tokenizer.unk_token_id not in batch["input_ids"]
    for found in (task.row_losses(model, batch), task.losses(model(batch), batch)):  # in chunks, and of all logits
        torch.testing.assert_close(found.sums, torch.stack(losses).to(found.sums.dtype), rtol=1e-5, atol=1e-5)
        assert found.counts.tolist() == counts
        own = torch.autograd.grad(found.sums.sum(), model.head.parameters())
        plain = torch.autograd.grad(torch.stack(losses).sum(), head.parameters(), retain_graph=True)
        for one, other in zip(own, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_greedy_captions_are_those_of_one_token_after_another(folder, rows) -> None:
    _, model, _ = made(folder)
    with torch.no_grad():
        model.base.get_base_model().lm_head.weight[3].mul_(1.5)  # the end is said by some, not by all
    tokenizer, patches = load_tokenizer(folder), torch.from_numpy(rows.patches[:6])
    found = generate_captions(model, tokenizer, patches, 8)
    with torch.no_grad():
        for features, said in zip(patches, found, strict=True):
            ids = [tokenizer.bos_token_id]
            for _ in range(8):
                ids.append(int(read(model.base, model.head, features, ids)[-1].argmax()))
                if ids[-1] == tokenizer.eos_token_id:
                    break
            assert said == [i for i in ids[1:] if i != tokenizer.eos_token_id]
    assert caption_images(model, tokenizer, patches, 8) == [tokenizer.decode(ids) for ids in found]


def test_features_are_patches_pooled_to_fewer(folder, scene_rows) -> None:
    images = scene_rows.inputs[:3]
    whole = seen(folder, images).numpy()
    np.testing.assert_allclose(compute_patch_features(images, folder / "image"), whole, rtol=1e-4, atol=1e-5)
    quarters = whole.reshape(3, 2, 2, 2, 2, 48).mean((2, 4)).reshape(3, 4, 48)
    np.testing.assert_allclose(compute_patch_features(images, folder / "image", 2), quarters, rtol=1e-4, atol=1e-5)
    found = TASKS.build("captions(side=1)").tokenise(scene_rows, folder, 32)
    np.testing.assert_allclose(found.patches[:3, 0], whole.mean(1), rtol=1e-4, atol=1e-5)


def test_a_connector_in_closed_form_is_the_regression_of_the_pooled_rows(folder, rows) -> None:
    from fedpeft.parts.families import HEADS

    task, model, _ = made(folder, dtype="fp64")
    head = dataclasses.replace(HEADS.build(get_default_head("scenes(task=captions)")), strength=1e-3)
    parts = [task.compute_regression_data(model, rows.batch(part)) for part in (range(7), range(7, 20))]
    sums = [head.statistics(features, targets, 48) for features, targets in parts]
    found = head.solve({name: sums[0][name] + sums[1][name] for name in sums[0]}, 48, 48)
    weight = model.base.get_base_model().get_input_embeddings().weight.detach().numpy()
    said = [
        weight[rows.texts.ids[a + 1 : b]].mean(0)
        for a, b in zip(rows.texts.offsets, rows.texts.offsets[1:], strict=False)
    ]
    x = rows.patches.mean(1, dtype=np.float64)
    penalty = 1e-3 * (x * x).sum() / 48
    stacked = np.concatenate([np.c_[x, np.ones(len(x))], np.sqrt(penalty) * np.eye(48, 49)])
    expected = np.linalg.lstsq(stacked, np.concatenate([np.array(said), np.zeros((48, 48))]), rcond=None)[0]
    np.testing.assert_allclose(found["head.weight"].numpy(), expected[:-1].T, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["head.bias"].numpy(), expected[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "peft"),
    [
        ("captions", LORA),
        ("captions(connector=mlp, side=2)", "bottleneck(dim=3, layers=1)"),
        ("captions", "linear_probe"),
    ],
)
def test_what_is_saved_is_what_was_trained(folder, scene_rows, tmp_path, task, peft) -> None:
    built, model, method = made(folder, task, peft)
    state = {name: p.detach() + 0.01 for name, p in find_trainable(model).items()}
    saved_adapter.save(tmp_path, model, state, None, None, None if method.in_peft else peft)
    saved_adapter.put(model, state)
    loaded = saved_adapter.load(tmp_path, built, built.base(folder, torch.float32), 0)
    batch = built.tokenise(scene_rows.take(np.arange(4)), folder, 32).batch(range(4))
    torch.testing.assert_close(loaded(batch), model(batch))


def test_rows_are_cut_kept_and_refused_where_a_side_is_missing(folder, scene_rows, rows) -> None:
    again = restore_examples(convert_to_arrays(rows))
    one, other = rows.batch([3, 1]), again.batch([3, 1])
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert rows.lengths.tolist() == [16 + len(text.split()) + 2 for text in scene_rows.texts]
    task = TASKS.build("captions")
    cut = task.tokenise(scene_rows, folder, 4)
    assert cut.cut == len(cut.texts) == 20
    assert cut.texts.lengths.max() == 4
    images = scene_rows.inputs[:2].copy()
    for broken in (Rows(images * 0, None, None, texts=["a", "b"]), Rows(images, None, None, texts=["a", ""])):
        with refuses("FP3168"):
            task.tokenise(broken, folder, 32)
    with refuses("FP3167"):
        task.tokenise(Rows(["a"]), folder, 32)


@pytest.mark.parametrize(("peft", "code"), [("full", "FP1216"), ("prompt_tuning", "FP1215")])
def test_prompts_and_all_weights_are_refused(folder, peft, code) -> None:
    task, model, _ = made(folder, peft=peft)
    with refuses(code, "captions", "--peft lora", "linear_probe"):
        task.check(model)


def test_images_come_to_be_told_apart(folder) -> None:
    """Three images: after some steps a caption is likelier with its own than with another, by far more than before."""
    torch.manual_seed(0)  # of LoRA's A
    task, model, _ = made(folder, "captions(side=2)", "lora(rank=8)")
    greys = np.linspace(20, 235, 3).astype(np.uint8)
    images = np.broadcast_to(greys[:, None, None], (3, 16, 16)).copy()
    images[:, :8] = greys[::-1, None, None]
    rows = task.tokenise(Rows(images, None, None, texts=["red star", "blue circle", "green square"]), folder, 16)
    batch = rows.batch(range(3))

    def least_gain() -> float:
        """Nats that a caption's loss is lower with its own image than with the next best, the least of all."""
        with torch.no_grad():
            each = [task.row_losses(model, batch | {"patches": batch["patches"].roll(i, 0)}).sums for i in range(3)]
        return float((torch.stack(each[1:]).amin(0) - each[0]).min())

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    before = least_gain()
    for _ in range(60):
        optimizer.zero_grad()
        task.row_losses(model, batch).sums.mean().backward()
        optimizer.step()
    assert before < 0.1
    assert least_gain() > 0.5


def test_scenes_are_read_back_from_their_captions_and_attributes_counted() -> None:
    every = list_scenes()
    assert [parse_caption(scene.caption) for scene in every] == every
    assert parse_caption("a red circle near a blue star") is None
    right = ["a red circle left of a blue star", "a red star above a green star"]
    said = ["a red square above a blue star", "red star"]
    found = compute_measures([*said, right[0]], [*right, right[0]], ["exact_match"])
    assert found == {"exact_match": 1 / 3, "colour": 4 / 6, "shape": 3 / 6, "relation": 1 / 3, "form": 2 / 3}
    assert compute_measures(["sneaker"], ["a photo of a sneaker"], ["exact_match"]) == {"exact_match": 0.0}


def test_data_sets_bring_model_and_start_of_their_task() -> None:
    assert load_dataset("scenes(rows=20, task='captions(side=2)')").default_model == "towers(text=smollm2)"
    assert get_default_head("scenes") is None
    assert get_default_head("fashion_texts(task='captions(side=2)')") == "ridge(scale=1.0)"

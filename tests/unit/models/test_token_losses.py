"""Losses of next tokens in chunks: those of the whole logits, with their gradients, and never all logits."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from fedpeft.data.tagged_words import IGNORED
from fedpeft.models import token_losses as module
from fedpeft.models.base_model import resolve_model
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.task import RowLosses, find_trainable
from fedpeft.models.tasks.causal_lm import CausalLM, LanguageModel
from fedpeft.parts.families import PEFT_METHODS, TASKS

TASK = CausalLM()
SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1}


def batch_of(vocabulary, rows=3, tokens=16):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, vocabulary, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, 0] = IGNORED
    labels[0, 3:7] = IGNORED
    labels[2] = IGNORED  # a row that predicts nothing
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def adapted(dtype="fp64", peft="lora(rank=2, layers=0)"):
    model = TASK.model(TASK.base(resolve_model("tiny_lm"), DTYPES[dtype]), None)
    PEFT_METHODS.build(peft).attach(model, dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in find_trainable(model).values():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def losses_and_gradients(model, found: RowLosses):
    weights = torch.tensor([1.0, 0.25, 3.0], dtype=found.sums.dtype)  # rows may count differently
    parameters = [p for p in find_trainable(model).values() if p.requires_grad]
    return found, torch.autograd.grad((found.sums * weights).sum(), parameters, allow_unused=True)


@pytest.mark.parametrize("chunk", [1, 300, 10**9], ids=["one by one", "few", "all"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp64", 1e-10), ("fp32", 1e-6)])
@pytest.mark.parametrize("peft", ["lora(rank=2, layers=0)", "prompt_tuning(length=3)", "ia3(layers=0)"])
def test_chunks_give_the_losses_and_gradients_of_all_logits(peft, dtype, tolerance, chunk, monkeypatch):
    monkeypatch.setitem(module.CHUNK, "cpu", chunk)
    model = adapted(dtype, peft)
    batch = batch_of(model.base.config.vocab_size)
    expected, wanted = losses_and_gradients(model, TASK.losses(model(batch), batch))
    found, gradients = losses_and_gradients(model, TASK.row_losses(model, batch))
    assert torch.allclose(found.sums, expected.sums, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.counts, expected.counts)
    assert torch.equal(found.correct, expected.correct)
    one, other = flat(gradients), flat(wanted)
    if dtype == "fp64":
        assert (one - other).norm() <= tolerance * other.norm()
        return
    exact = adapted("fp64", peft)  # of fp32's own rounding there must not be more than in the whole computation
    _, truth = losses_and_gradients(exact, TASK.losses(exact(batch), batch))
    assert (one - flat(truth)).norm() <= 2 * (other - flat(truth)).norm()


def flat(gradients):
    return torch.cat([g.flatten().double() for g in gradients if g is not None])


def test_losses_are_torchs_own():
    generator = torch.Generator().manual_seed(2)
    h = torch.randn(50, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(20, (50,), generator=generator)
    scale = torch.rand(50, generator=generator, dtype=torch.float64)
    losses, correct = module.compute_token_losses(h, labels, lambda x: x @ weight.T)
    expected = torch.nn.functional.cross_entropy(h @ weight.T, labels, reduction="none")
    assert torch.allclose(losses, expected, rtol=1e-12)
    assert torch.equal(correct, (h @ weight.T).argmax(1) == labels)
    got, want = (torch.autograd.grad((x * scale).sum(), h)[0] for x in (losses, expected))
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


def test_of_equal_logits_the_first_is_the_prediction():
    h, labels = torch.zeros(2, 3), torch.tensor([0, 4])
    _, correct = module.compute_token_losses(h, labels, lambda x: x @ torch.ones(3, 6))
    assert correct.tolist() == [True, False]


def test_no_labels_are_no_loss_and_no_gradient():
    model = adapted()
    batch = batch_of(model.base.config.vocab_size)
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    found = TASK.row_losses(model, batch)
    assert not found.sums.any()
    assert not found.counts.any()
    for gradient in torch.autograd.grad(found.sums.sum(), list(find_trainable(model).values()), allow_unused=True):
        assert gradient is None or not gradient.any()


@pytest.mark.parametrize("training", [True, False])
def test_the_output_layer_never_sees_more_than_a_chunk(training, monkeypatch):
    monkeypatch.setitem(module.CHUNK, "cpu", 5 * 200)
    model = adapted()
    batch = batch_of(model.base.config.vocab_size)
    output = model.base.get_output_embeddings()
    seen = []
    output.register_forward_hook(lambda _, given, made: seen.append(made.numel()))
    with torch.set_grad_enabled(training):
        TASK.row_losses(model, batch)
    assert max(seen) <= 1000
    assert len(seen) > 3


def test_what_is_known_of_the_output_layer_is_asked_at_one_position_that_lies_by_itself():
    """A view into all positions is multiplied many times more slowly in bf16."""
    model = adapted()
    batch = batch_of(model.base.config.vocab_size)
    seen = []
    model.base.get_output_embeddings().register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    TASK.row_losses(model, batch)
    for entering, logits in seen[:2]:
        assert logits.shape[:2] == (1, 1)
        assert entering.untyped_storage().nbytes() == entering.nbytes


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (Gemma2ForCausalLM, Gemma2Config(**WIDE, head_dim=8, final_logit_softcapping=2.0, sliding_window=8)),
        (CohereForCausalLM, CohereConfig(**WIDE, logit_scale=0.25)),
        (GraniteForCausalLM, GraniteConfig(**WIDE, logits_scaling=4.0)),
        (GPT2LMHeadModel, GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)),
    ],
    ids=["gemma2", "cohere", "granite", "gpt2"],
)
def test_what_a_family_does_to_its_logits_is_done(kind, config):
    torch.manual_seed(0)
    model = LanguageModel(kind(config).double().eval())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    model.requires_grad_(False)
    trained = [p for name, p in model.named_parameters() if "norm" in name or "ln_" in name]
    for p in trained:
        p.requires_grad_(True)
    batch = batch_of(96)
    found, expected = TASK.row_losses(model, batch), TASK.losses(model(batch), batch)
    assert model._output != [None], "in chunks"
    assert torch.allclose(found.sums, expected.sums, rtol=1e-10)
    one, other = (torch.autograd.grad(x.sums.sum(), trained) for x in (found, expected))
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-10) for a, b in zip(one, other, strict=True))


def test_logits_that_are_made_in_another_way_are_made_in_full():
    """Nobody knows what such a model does, so the loss is that of its own logits."""
    model = adapted()
    inner = model.base.get_base_model()
    forward = inner.forward

    def bent(**given):
        made = forward(**given)
        made.logits = made.logits.sin()
        return made

    inner.forward = bent
    batch = batch_of(model.base.config.vocab_size)
    found, expected = TASK.row_losses(model, batch), TASK.losses(model(batch), batch)
    assert model._output == [None]
    assert torch.allclose(found.sums, expected.sums, rtol=1e-12)


def test_an_output_layer_that_is_trained_gets_its_gradient():
    model = TASK.model(TASK.base(resolve_model("tiny_lm"), torch.float64), None).requires_grad_(True)
    batch = batch_of(model.base.config.vocab_size)
    weight = model.base.get_output_embeddings().weight
    [found] = torch.autograd.grad(TASK.row_losses(model, batch).sums.sum(), weight)
    [expected] = torch.autograd.grad(TASK.losses(model(batch), batch).sums.sum(), weight)
    assert expected.any()
    assert torch.allclose(found, expected, rtol=1e-10)


def test_classification_is_as_it_was():
    task = TASKS.build("classification")
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 3])
    shift = torch.tensor([0.5, -1.0, 0.0, 2.0])
    found = task.row_losses(lambda _: logits, {"labels": labels}, shift)
    assert torch.equal(found.sums, task.losses(logits + shift, {"labels": labels}).sums)

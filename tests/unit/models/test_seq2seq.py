"""Sequence to sequence against plain transformers: losses, gradients, answers, gradients per example, what is cut."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fedpeft.clients.batched import BatchedExecutor
from fedpeft.clients.dropout import ClientDropout, DropoutPlan
from fedpeft.clients.example_gradients import ExampleGradients
from fedpeft.clients.executor import Job
from fedpeft.clients.sequential import SequentialExecutor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, WatermarkingConfig

from fedpeft.data.cached_rows import convert_to_arrays, restore_examples
from fedpeft.data.rows import Rows, load_dataset
from fedpeft.data.tagged_words import IGNORED
from fedpeft.data.text_to_text import pack_pair, parse_pair, tokenize_target
from fedpeft.models.answers.exam import Exam, select_fitting
from fedpeft.models.answers.generation import answer_prompts, generate_tokens
from fedpeft.models.answers.questions import Question, QuestionForm, parse_question
from fedpeft.models.base_model import resolve_model
from fedpeft.models.checkpointing import checkpoint_blocks
from fedpeft.models.dtypes import DTYPES
from fedpeft.models.layers import choose_blocks, find_linear_layers, find_target_layers
from fedpeft.models.task import find_trainable
from fedpeft.models.tasks.seq2seq import check_seq2seq
from fedpeft.parts.families import PEFT_METHODS, TASKS
from fedpeft.peft.methods.adamix import Mixture, compute_symmetric_divergence
from tests.refusals import refuses
from tests.unit.clients.test_executors import local_training
from tests.unit.clients.test_per_example import compute_row_means, one_by_one

TASK = TASKS.build("seq2seq")
KINDS = ("t5", "bart")
ROWS = load_dataset("tiny_seq2seq(owners=2, rows=12)").train


def folder_of(kind):
    return resolve_model(f"tiny_seq2seq(kind={kind})")


def rows_of(kind, tokens=32):
    return TASK.tokenise(ROWS, folder_of(kind), tokens)


def adapted(kind, dtype="fp64", peft="lora(rank=2, layers=0)"):
    model = TASK.model(TASK.base(folder_of(kind), DTYPES[dtype]), None)
    method = PEFT_METHODS.build(peft)
    method.attach(model, dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in find_trainable(model).values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model, method


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers(kind):
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder_of(kind)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder_of(kind))
    model = TASK.model(TASK.base(folder_of(kind), torch.float32), None)
    rows = rows_of(kind)
    with torch.no_grad():
        found = TASK.row_losses(model, rows.batch(np.arange(7)))
        slow = TASK.losses(model(rows.batch(np.arange(7))), rows.batch(np.arange(7)))
    for i in range(7):
        source, target = parse_pair(ROWS.inputs[i])
        labels = tokenizer(text_target=target, return_tensors="pt").input_ids
        with torch.no_grad():
            loss = plain(**tokenizer(source, return_tensors="pt"), labels=labels).loss
        assert labels[0, -1] == tokenizer.eos_token_id
        for losses in (found, slow):
            assert losses.counts[i] == labels.shape[1]
            assert losses.sums[i] / losses.counts[i] == pytest.approx(float(loss), rel=2e-5)
    assert torch.equal(found.correct, slow.correct)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_all_logits_and_of_blocks_computed_twice(kind):
    model, _ = adapted(kind)
    batch = rows_of(kind).batch(np.arange(6))
    chosen = list(find_trainable(model).values())
    expected = torch.autograd.grad(TASK.losses(model(batch), batch).sums.sum(), chosen)
    checkpoint_blocks(model.base)
    for _ in range(2):
        found = torch.autograd.grad(TASK.row_losses(model, batch).sums.sum(), chosen)
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_two_passes_of_adamix_are_compared_at_the_tokens_of_the_answers(kind):
    model, _ = adapted(kind, peft="adamix(dim=3, experts=2, layers=0, consistency=2.5)")
    batch, said = rows_of(kind).batch(np.arange(5)), []
    layers = [m for m in model.modules() if isinstance(m, Mixture)]
    for expert in (0, 1):
        for layer in layers:
            layer.draw_from(lambda _, expert=expert: [expert])
        said.append(model(batch).detach())
    left = [0] * len(layers) + [1] * len(layers)
    for layer in layers:
        layer.draw_from(lambda _: [left.pop(0)])
    found = TASK.step_losses(model, batch)
    apart = [compute_symmetric_divergence(*(s[i, : int(n)] for s in said)).sum() for i, n in enumerate(found.counts)]
    assert torch.allclose(found.sums, TASK.losses(said[0], batch).sums + 2.5 * torch.stack(apart), atol=1e-10)
    assert len(set(found.counts.tolist())) > 1, "answers of several lengths"
    assert float(torch.stack(apart).min()) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_one_client_after_another_and_all_in_one_pass_are_the_same(kind):
    rows = rows_of(kind)
    model, method = adapted(kind)
    layout, start = method.layout(model), method.start(model, 0)
    start = {name: tensor.double() for name, tensor in start.items()}
    shards = np.array_split(np.arange(len(rows)), 3)
    local = local_training(3, "steps(2)")
    jobs = [Job(k, 1, 7, own, start, frozenset(layout.names), local, 0.01) for k, own in enumerate(shards)]
    one = list(SequentialExecutor(model, TASK, rows, layout).train(jobs))
    plain = TASK.model(TASK.base(folder_of(kind), torch.float64), None)
    both = list(BatchedExecutor(plain, TASK, method, rows, layout, 3, "native").train(jobs))
    for a, b in zip(one, both, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert all(torch.allclose(a.state[n], b.state[n], rtol=1e-8, atol=1e-10) for n in start)
        assert all((a.state[n] - start[n]).abs().max() > 1e-4 for n in start if "lora_B" in n), "all layers are trained"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("peft", ["lora(rank=2, layers=0)", "ia3(layers=0)", "full"])
def test_gradients_per_example_are_those_of_one_row_at_a_time(kind, peft):
    model, method = adapted(kind, peft=peft)
    chosen, batch = find_trainable(model), rows_of(kind).batch(np.arange(5))
    per_example = ExampleGradients(model, TASK, method.privacy)
    expected = one_by_one(TASK, model, batch, chosen)
    with per_example.attach_hooks(chosen):
        losses = per_example.fill(batch, chosen)
        found = {n: p.grad_sample.clone() for n, p in chosen.items()}
    assert torch.allclose(losses, compute_row_means(TASK.losses(model(batch), batch)), rtol=1e-5)
    for name in chosen:
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_in_both_stacks(kind):
    base = TASK.base(folder_of(kind), torch.float32)
    for targets in (("q", "v"), ("q_proj", "v_proj")):
        if (kind == "t5") == (targets[0] == "q"):
            found = find_target_layers(base, targets, 0)
    # two blocks of an encoder attend to themselves, two of a decoder to the encoder, too
    assert len(found) == 2 * (2 + 2 + 2)
    assert len([name for name in found if "EncDecAttention" in name or "encoder_attn" in name]) == 2 * 2
    ones = [list(choose_blocks(base, layers)) for layers in (1, (1, 3), 0)]
    sides_ = [[("decoder" in path, path[-1]) for path in some] for some in ones]
    assert sides_[0] == sides_[1] == [(False, "1"), (True, "1")]
    assert len(sides_[2]) == 4
    assert choose_blocks(base, None) == choose_blocks(base, 0)
    for layers, code in ((3, "FP4024"), ((4,), "FP4025"), ((), "FP4025")):
        with refuses(code, f"layers={layers}", "lora"):
            choose_blocks(base, layers, "lora")
    assert len(find_linear_layers(base, (0,))) < len(find_linear_layers(base, (3,))), (
        "a decoder's block has one attention more"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_likeliest_tokens_one_after_the_other(kind):
    model, _ = adapted(kind, "fp32", "lora(rank=2, layers=0)")
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder_of(kind))
    prompts = [parse_question(row).tokenize_prompt(tokenizer) for row in ROWS.inputs[:3]]
    config = model.base.config

    def alone(prompt):
        made = [config.decoder_start_token_id]
        for _ in range(6):
            with torch.no_grad():
                logits = model.base(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([made])).logits
            made.append(int(logits[0, -1].argmax()))
            if made[-1] == tokenizer.eos_token_id:
                return made[1:-1]
        return made[1:]

    expected = [alone(prompt) for prompt in prompts]
    assert generate_tokens(model, tokenizer, prompts, 6) == expected
    said = answer_prompts(model, tokenizer, prompts, 6, batch=2)
    assert said == [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]


# What a folder's generation_config.json may say, with tokens that the models of the tests would write.
OTHERWISE = {
    "do_sample": True, "num_beams": 3, "return_dict_in_generate": True, "min_length": 5,
    "min_new_tokens": 5, "no_repeat_ngram_size": 1, "repetition_penalty": 50.0, "guidance_scale": 9.0,
    "exponential_decay_length_penalty": (1, 9.0), "prompt_lookup_num_tokens": 2,
    "watermarking_config": WatermarkingConfig(bias=90.0, context_width=1), "penalty_alpha": 0.6, "dola_layers": "low",
    "force_words_ids": [[5]], "constraints": [1], "assistant_early_exit": 1, "stop_strings": ["a"],
    "token_healing": True, "cache_implementation": "quantized", "cache_config": {"nbits": 4}, "prefill_chunk_size": 1,
    "use_mtp": True,
}  # fmt: skip
OF_ENCODERS = {"encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 50.0}


@pytest.mark.parametrize("kind", [*KINDS, "lm"])
def test_a_models_own_settings_of_generation_do_not_make_answers_others(kind):
    if kind == "lm":
        folder, task = resolve_model("tiny_lm"), TASKS.build("causal_lm")
        model, prompts = task.model(task.base(folder, torch.float32), 0).eval(), [[2, 9, 9], [2, 30, 31, 9]]
    else:
        folder, model = folder_of(kind), adapted(kind, "fp32")[0].eval()
        prompts = [
            parse_question(row).tokenize_prompt(AutoTokenizer.from_pretrained(folder)) for row in ROWS.inputs[:3]
        ]
    tokenizer, settings = AutoTokenizer.from_pretrained(folder), model.base.generation_config
    plain = generate_tokens(model, tokenizer, prompts, 6)
    said = sorted({token for row in plain for token in row})
    assert said
    tokens = {
        "suppress_tokens": said, "begin_suppress_tokens": said, "bad_words_ids": [[t] for t in said],
        "sequence_bias": [[[t], -90.0] for t in said], "forced_eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    for name, value in (OTHERWISE | tokens | ({} if kind == "lm" else OF_ENCODERS)).items():
        before = getattr(settings, name, None)  # some are newer than the oldest transformers that works
        settings.update(**{name: value})
        assert generate_tokens(model, tokenizer, prompts, 6) == plain, name
        setattr(settings, name, before)
    if kind == "bart":  # a translation's language is not a matter of taste
        settings.forced_bos_token_id = said[-1]
        assert {row[0] for row in generate_tokens(model, tokenizer, prompts, 6)} == {said[-1]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_likeliest_choice_is_that_of_the_loss(kind):
    model, _ = adapted(kind, "fp32")
    tokenizer = AutoTokenizer.from_pretrained(folder_of(kind))
    choices = tuple(parse_pair(row)[1] for row in ROWS.inputs[:4])
    source = parse_pair(ROWS.inputs[0])[0]
    question = Question(pack_pair(source, choices[0]), source, (choices[0],), choices)
    [said] = Exam((question,), "exact_match", 4).answer(model.eval(), tokenizer)
    rows = TASK.tokenise(Rows([pack_pair(source, c) for c in choices]), folder_of(kind), 32)
    with torch.no_grad():
        sums = TASK.row_losses(model, rows.batch(range(4))).sums
    lengths = torch.tensor([len(c) for c in choices])
    assert said == (choices[int(sums.argmin())], choices[int((sums / lengths).argmin())])


def test_what_is_cut_is_counted_and_a_cut_answer_does_not_end():
    whole, cut = rows_of("t5"), rows_of("t5", 4)
    long = [max(len(s.split()), len(t.split())) + 1 > 4 for s, t in map(parse_pair, ROWS.inputs)]
    assert (whole.cut, cut.cut) == (0, sum(long))
    assert 0 < cut.cut < len(ROWS)
    batch = cut.batch(np.arange(len(cut)))
    ends = (batch["labels"] == 3).any(1)
    assert ends.tolist() == [len(parse_pair(row)[1].split()) + 1 <= 4 for row in ROWS.inputs]
    assert (batch["input_ids"] == 3).any(1).all(), "a cut text ends as the tokenizer ends it"
    assert ((batch["labels"] == IGNORED) | (batch["labels"] > 0)).all()


def test_rows_are_the_same_from_the_cache():
    rows = rows_of("bart", 4)
    again = restore_examples(convert_to_arrays(rows))
    assert (again.cut, len(again)) == (rows.cut, len(rows))
    assert (again.lengths == rows.lengths).all()
    one, other = rows.batch(np.arange(5)), again.batch(np.arange(5))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_answer_ends_whatever_the_tokenizer_says():
    def plain(text=None, text_target=None):
        return {"input_ids": [5, 6]}

    plain.eos_token_id = 3
    assert tokenize_target(plain, "x") == [5, 6, 3]
    plain.eos_token_id = None
    assert tokenize_target(plain, "x") == [5, 6]


@pytest.mark.parametrize("row", ["a text", '{"prompt": "a", "answer": "b"}', "[1]", '{"source": "a"}'])
def test_rows_that_are_no_pairs_are_one_sentence(row):
    with refuses("FP3150") as caught:
        TASK.tokenise(Rows([row]), folder_of("t5"), 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [("tiny_lm", ("FP4046", "llama")), ("tiny", ("FP4046", "bert"))],
)
def test_models_of_one_stack_are_refused(model, words):
    with refuses(*words):
        TASK.base(resolve_model(model), torch.float32)


def test_a_model_that_starts_answers_with_nothing_is_refused(tmp_path):
    shutil.copytree(folder_of("bart"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"decoder_start_token_id": None}))
    with refuses("FP4047"):
        check_seq2seq(tmp_path / "m")
    with refuses("FP4043"):
        TASKS.build("causal_lm").base(folder_of("t5"), torch.float32)


@pytest.mark.parametrize("peft", ["prompt_tuning(length=2)", "p_tuning(length=2)"])
def test_prompts_are_refused(peft):
    with refuses("FP4070", "--peft"):
        adapted("bart", peft=peft)


def test_a_question_of_ones_own_is_a_row():
    found = Question(QuestionForm(True, None, is_paired=True).pack_row("ba", "de", "line 1"), "ba", ("de",))
    assert found.is_paired
    assert parse_pair(found.row) == ("ba", "de")
    assert not Question(QuestionForm(False).pack_row("ba", "de", "line 1"), "ba", ("de",)).is_paired
    templated = QuestionForm(True, "alpaca", is_paired=True).pack_row("ba", "de", "line 1")
    assert parse_pair(templated)[0].startswith("Below is an instruction")


def test_dropout_of_a_layer_that_sees_one_text_of_a_row():
    """Rows are as long as both texts together; masks do not depend on how far a text is padded."""
    masks = []
    for tokens in (8, 16):
        layer = ClientDropout(0.5, DropoutPlan([(np.random.default_rng(0), 2, 12)]))
        masks.append(layer(torch.ones(2, tokens, 3)))
    assert torch.equal(masks[0], masks[1][:, :8])
    assert (masks[0] == 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_around_an_answer_count_where_it_must_fit(kind):
    tokenizer = AutoTokenizer.from_pretrained(folder_of(kind))
    _, target = parse_pair(ROWS.inputs[0])
    longest = tokenize_target(tokenizer, " ".join([target] * 3))
    asked = Question(pack_pair("a", ""), "a", (" ".join([target] * 3),), (" ".join([target] * 3), target))
    assert select_fitting([asked], tokenizer, 1, len(longest))[0] == [asked]
    with refuses("FP3002"):
        select_fitting([asked], tokenizer, 1, len(longest) - 1)

"""Instruction data: the chat template, the loss on answers only, through the main job."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from fedpeft.data.cached_rows import TOKENIZER_FILES
from fedpeft.data.conversations import pack_conversation, tokenize_row
from fedpeft.data.made_words import WORDS
from fedpeft.data.rows import load_dataset
from fedpeft.data.tagged_words import IGNORED
from fedpeft.errors import DataError, ModelError
from fedpeft.machine.cache import hash_files
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import TASKS
from fedpeft.simulate import main
from tests.chat import TEMPLATE
from tests.refusals import pattern_of, refuses


def conversation(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "chat.jsonl"
    words = [" ".join(WORDS[2 + i : 6 + i]) for i in range(40)]
    lines = [{"messages": conversation(words[i], words[-i], words[i - 3], words[i - 7])} for i in range(40)]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


@pytest.mark.fast
def test_the_loss_is_that_of_the_answers(chat_model, file):
    data = load_dataset(f"file:{file}")
    assert data.task == "instruction"
    task = TASKS.build("instruction")
    rows = task.tokenise(data.train, chat_model, 64)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    batch = rows.batch(np.arange(3))
    for i in range(3):
        said = json.loads(data.train.inputs[i])
        counted = batch["labels"][i][batch["labels"][i] != IGNORED]
        answers = " ".join(m["content"] for m in said if m["role"] == "assistant")
        kept = tokenizer.decode(counted).split()
        assert [word for word in kept if word in answers.split()] == answers.split()
        assert not {m["content"].split()[0] for m in said if m["role"] == "user"} & set(kept) - set(answers.split())
    logits = torch.zeros(3, batch["input_ids"].shape[1] - 1, tokenizer.vocab_size)
    assert torch.equal(task.losses(logits, batch).counts, (batch["labels"] != IGNORED).sum(1).float())


@pytest.mark.fast
def test_prompts_are_a_prefix_of_the_whole_conversation(chat_model):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    text = pack_conversation(conversation(WORDS[3], f"{WORDS[4]} {WORDS[5]}"), "line 1")
    ids, answers = tokenize_row(tokenizer, text)
    whole = tokenizer.apply_chat_template(json.loads(text), tokenize=True, return_dict=True)["input_ids"]
    assert ids == list(whole)
    assert answers == [False] * (len(ids) - 2) + [True] * 2


def test_the_main_job_learns_from_conversations(chat_model, file, tmp_path):
    words = ["--dataset", f"file:{file}", "--model", str(chat_model), "--clients=3", "--cohort=3", "--rounds=1"]
    words += ["--workers=1", "--partition=iid", "--dtype=fp32", "--local-work=steps(2)", "--peft=lora(layers=1)"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["task"] == "instruction"
    assert summary["perplexity"] > 1


@pytest.mark.fast
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], ("FP3013", "line 3 of x.jsonl")),
        ("hello", ("FP3013", "line 3 of x.jsonl")),
        ([{"role": "robot", "content": "x"}], ("FP3014", "line 3 of x.jsonl", "system, user, assistant")),
        ([{"role": "user", "content": "x"}], ("FP3016", "line 3 of x.jsonl", "there is none")),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}],
            ("FP3016", "line 3 of x.jsonl", "the assistant's are empty"),
        ),
        (
            [{"role": "user", "content": "x"}, {"role": "robot", "content": "y"}],
            ("FP3014", "line 3 of x.jsonl", "2", "robot"),
        ),
    ],
)
def test_a_broken_conversation_is_one_sentence(value, words):
    with refuses(*words):
        pack_conversation(value, "line 3 of x.jsonl")


@pytest.mark.fast
def test_what_can_not_be_tokenised_is_one_sentence(chat_model, file):
    data = load_dataset(f"file:{file}")
    task = TASKS.build("instruction")
    with refuses("FP4001"):
        task.tokenise(data.train, resolve_model("tiny_lm"), 64)
    with refuses("FP3170", "--tokens 4"):
        task.tokenise(data.train, chat_model, 4)


@pytest.mark.fast
def test_a_conversation_that_the_assistant_begins_is_refused():
    with refuses("FP3015"):
        pack_conversation(conversation("a", "b")[::-1], "row 1")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("template", "error", "words"),
    [
        ("{% for m in messages %}{{ 'last ' if loop.last }}{{ m.content }} {% endfor %}", ModelError, ("FP4003",)),
        ("{{ raise_exception('only system messages') }}", DataError, ("FP3023", "only system messages")),
    ],
)
def test_a_template_that_answers_can_not_be_told_from(chat_model, template, error, words):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    tokenizer.chat_template = template
    with pytest.raises(error, match=pattern_of(*words)):
        tokenize_row(tokenizer, pack_conversation(conversation(*WORDS[2:6]), "row 1"))


def merging():
    """Return a tokenizer whose words include the space before them, as in GPT-2 and Llama."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator(["user: what? assistant: fourteen\n"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)


OPENED = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SPACED = OPENED + "{% if add_generation_prompt %}assistant: {% endif %}"
"""Opens an answer by a space, which belongs to the token of its first word."""


@pytest.mark.fast
def test_an_answer_whose_first_word_holds_the_space_before_it():
    tokenizer = merging()
    tokenizer.chat_template = SPACED
    talk = conversation("what?", "fourteen", "what?", "what fourteen")
    ids, answers = tokenize_row(tokenizer, pack_conversation(talk, "row 1"))
    assert ids == list(tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"])
    assert " fourteen" in [tokenizer.decode([token]) for token in ids], "so the seam lies within a token"
    learned = tokenizer.decode([token for token, counts in zip(ids, answers, strict=True) if counts])
    assert learned == " fourteen\n what fourteen\n"


@pytest.mark.fast
def test_a_template_that_marks_answers_may_write_earlier_messages_anew():
    tokenizer = merging()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'last ' if loop.last }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %} {% endfor %}"
    )
    ids, answers = tokenize_row(
        tokenizer, pack_conversation(conversation("what?", "user", "what?", "fourteen"), "row 1")
    )
    assert tokenizer.decode(ids) == "what? user what? last fourteen "
    learned = tokenizer.decode([token for token, counts in zip(ids, answers, strict=True) if counts])
    assert learned.split() == ["user", "fourteen"]


@pytest.mark.fast
def test_another_chat_template_makes_other_tokens(chat_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(chat_model, folder)
    before = hash_files(folder, TOKENIZER_FILES)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE + "x"
    tokenizer.save_pretrained(folder)
    assert hash_files(folder, TOKENIZER_FILES) != before


def test_what_instruction_tuning_costs_is_scored_on_plain_language(chat_model, file, tmp_path):
    words = ["--dataset", f"file:{file}", "--model", str(chat_model), "--partition", "iid", "--clients", "3",
             "--cohort", "2", "--rounds", "1", "--local-work", "steps(2)", "--workers", "1", "--dtype", "fp32",
             "--tokens",
             "64", "--peft", "lora(targets=('q_proj', 'v_proj'))", "--measure",
             "forgetting(dataset=tiny_lm)"]  # fmt: skip
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    lost = json.loads((tmp_path / "run" / "summary.json").read_text())["forgetting"]
    assert lost["measure"] == "nats per token"
    assert lost["lost"] == pytest.approx(lost["after"] - lost["before"])

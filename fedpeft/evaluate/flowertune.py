"""FlowerTune's evaluators: the same prompts and the same reading of answers, on local files of each track's questions.

    nlp       MMLU: input, A, B, C, D, target
    medical   MedMCQA: question, opa to opd, cop; MedQA: question, options, answer; PubMedQA: CONTEXTS, QUESTION,
              final_decision; each with instruction, the track's text for that set, which is not shipped here
    finance   instruction, input, output: a sentiment

They follow benchmarks/flowertune-llm/evaluation in Flower's repository (general-nlp, medical, finance). Its loops
generate one answer at a time, or a batch in the file's order; batches here give the same answers. The code track
(pass@1) runs generated programs, and is left to its own harness.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.data.record_files import read_records
from fedpeft.errors import ConfigError, DataError
from fedpeft.models.answers.generation import answer_prompts, generate_tokens
from fedpeft.models.task import FederatedModel
from fedpeft.parts import suggest_legal

GENERAL = "Answer the following multiple choice question."

BATCH = 16
"""Batch size of the reference, in which the first question sets the length of answers."""

FINANCE_TOKENS = 512
"""Tokens of question and answer together, including padding."""


@dataclass(frozen=True)
class Item:
    """A question in the track's form, and the right answer."""

    prompt: str
    right: str


def read(track: str, path: str) -> list[Item]:
    """Return the questions of a JSONL, CSV or TSV file.

    Raises:
        ConfigError: the track does not exist.
        DataError: the file can't be read, or a row lacks the track's columns.
    """
    if track not in TRACKS:
        raise ConfigError(f"FP1166 the FlowerTune track {track!r} does not exist; {suggest_legal(track, TRACKS)}")
    found = []
    for place, row in read_records(path):
        try:
            found.append(TRACKS[track].item(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, KeyError) and isinstance(error.args[0], str) and error.args[0] not in row:
                raise DataError(
                    f"FP3462 {place} of {path} has no column {error.args[0]!r}; the FlowerTune track {track} needs "
                    f"{TRACKS[track].columns}, and the row has {', '.join(map(str, row))}"
                ) from None
            raise DataError(f"FP3165 {place} of {path} is not a valid row of the track {track}: {error!r}") from None
    if not found:
        raise DataError(f"FP3004 {path} has no questions")
    return found


def _create_choice_item(instruction: str, question: str, options: Sequence[str], right: str) -> Item:
    if not question.endswith(("?", ".")):
        question += "?"
    listed = "\n".join(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))
    return _create_item(instruction, f"Question: {question}\n\nOptions:\n{listed}", right)


def _create_item(instruction: str, body: str, right: str) -> Item:
    if not isinstance(right, str):
        raise TypeError(f"the right answer is {right!r}, but must be a text")
    prompt = f"{instruction}\n{body}\nThe answer is:\n"
    return Item(f"<|im_start|>question\n{prompt}<|im_end|>\n<|im_start|>answer\n", right)


def _create_nlp_item(row: Mapping[str, Any]) -> Item:
    if str(row["target"]).upper() not in tuple("ABCD"):
        raise ValueError(f"the target is {row['target']!r}, but must be a letter, A to D")
    return _create_choice_item(GENERAL, row["input"], [row[letter] for letter in "ABCD"], row["target"])


def _create_medical_item(row: Mapping[str, Any]) -> Item:
    instruction = row["instruction"]
    if "final_decision" in row:
        if not isinstance(row["CONTEXTS"], list):  # a table has no lists
            raise TypeError("CONTEXTS must be a list of texts")
        contexts = "\n".join(row["CONTEXTS"])
        return _create_item(instruction, f"{contexts}\n{row['QUESTION']}", row["final_decision"])
    if "cop" in row:
        options = [row[name] for name in ("opa", "opb", "opc", "opd")]
        named = str(row["cop"]).upper()  # in Parquet files, the hub names the classes a to d; -1 is a hidden answer
        right = named if named in tuple("ABCD") else dict(enumerate("ABCD"))[int(row["cop"])]
        return _create_choice_item(instruction, row["question"], options, right)
    options = [option["value"] for option in row["options"]]
    return _create_choice_item(
        instruction, row["question"], options, row["options"][options.index(row["answer"])]["key"]
    )


def _create_finance_item(row: Mapping[str, Any]) -> Item:
    if not isinstance(row["output"], str):
        raise TypeError(f"the output is {row['output']!r}, but must be a text")
    given = f"Input: {row['input']}\n" if row.get("input") else ""
    return Item(f"Instruction: {row['instruction']}\n{given}Answer: ", row["output"])


def _answer_with_letters(model: FederatedModel, tokenizer: Any, items: Sequence[Item]) -> list[str]:
    """Return answers with as many tokens as the first right answer of their batch."""
    said: list[str] = []
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        new = len(tokenizer(batch[0].right, add_special_tokens=False)["input_ids"])
        said += answer_prompts(model, tokenizer, [tokenizer(item.prompt)["input_ids"] for item in batch], new)
    return said


def _answer_with_sentiments(model: FederatedModel, tokenizer: Any, items: Sequence[Item]) -> list[str]:
    """Return answers; the longest question of a batch and its answer have `FINANCE_TOKENS` tokens together."""
    said: list[str] = []
    for start in range(0, len(items), BATCH):
        prompts = [tokenizer(item.prompt)["input_ids"] for item in items[start : start + BATCH]]
        new = FINANCE_TOKENS - max(map(len, prompts))
        if new < 1:
            raise DataError(
                f"FP3166 a question has {max(map(len, prompts))} tokens; "
                f"give questions below the track's {FINANCE_TOKENS}"
            )
        for prompt, ids in zip(prompts, generate_tokens(model, tokenizer, prompts, new), strict=True):
            whole = str(tokenizer.decode([*prompt, *ids], skip_special_tokens=True))
            said.append(whole.split("Answer: ")[1] if "Answer: " in whole else "")
    return said


def is_choice_right(said: str, right: str) -> bool:
    """Return whether an answer is right.

    Its first letter or digit, in lower case, must be the right letter. For yes, no and maybe, the whole answer counts.
    """
    said, right = said.lower(), right.lower()
    kept = said.split("\n##")[1].split("\n")[0].strip() if "\n##" in said else said
    kept = re.sub(r"[^a-zA-Z0-9]", " ", kept).strip()
    kept = re.sub(" +", " ", kept)
    if len(right) > 1:
        for twice, once in (("yesyes", "yes"), ("nono", "no"), ("yesno", "yes"), ("noyes", "no")):
            if twice in kept:
                kept = kept.replace(twice, once)
                break
    else:
        kept = kept[:1]
    return (kept if kept in (*"abcde", "yes", "no") else said) == right


def find_sentiment(text: str) -> str:
    """Return the first of positive and negative, in this order, that a text contains; otherwise neutral."""
    for word in ("positive", "negative"):
        if word in text or word.capitalize() in text:
            return word
    return "neutral"


def _is_sentiment_right(said: str, right: str) -> bool:
    return find_sentiment(said) == find_sentiment(right)


@dataclass(frozen=True)
class Track:
    """Functions of a track.

    Attributes:
        item: builds the question of a row.
        said: generates the answers.
        is_right: compares an answer with the right one.
        columns: the columns that a row must have, for messages.
    """

    item: Callable[[Mapping[str, Any]], Item]
    said: Callable[[FederatedModel, Any, Sequence[Item]], list[str]]
    is_right: Callable[[str, str], bool]
    columns: str


TRACKS: Mapping[str, Track] = {
    "nlp": Track(_create_nlp_item, _answer_with_letters, is_choice_right, "input, A, B, C, D and target"),
    "medical": Track(
        _create_medical_item,
        _answer_with_letters,
        is_choice_right,
        "instruction, and those of MedMCQA (question, opa to opd, cop), MedQA (question, options, answer) or PubMedQA "
        "(CONTEXTS, QUESTION, final_decision)",
    ),
    "finance": Track(
        _create_finance_item, _answer_with_sentiments, _is_sentiment_right, "instruction, output and perhaps input"
    ),
}

"""Checks that the trials of a search can be compared by their losses.

A language model is judged by the next token. Other lengths mean other tokens, and other tokenizers mean longer or
shorter tokens, whose losses have another unit. With token labels, other lengths mean other labeled words.
"""

from __future__ import annotations

from collections.abc import Callable

from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError
from fedpeft.models.base_model import resolve_model
from fedpeft.models.tasks.token_labels import TokenLabels
from fedpeft.parts.families import TASKS
from fedpeft.tune.search_file import Search
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.dataset_info import DatasetInfo


def check_tokens(search: Search, facts_of: Callable[[RunConfig], DatasetInfo]) -> None:
    """Refuse a search over lengths or tokenizers of a language model, or over lengths with token labels.

    Args:
        search: the search; its dataset is read only if it has several lengths or models.
        facts_of: returns the dataset info of a configuration.

    Raises:
        ConfigError: the losses of its trials could not be compared.
        FedpeftError: the dataset, a model or a tokenizer can't be read.
    """
    lengths, models = search.lengths(), list(search.list_models())
    if len(lengths) == len(models) == 1:
        return
    facts = facts_of(search.build_corner({}))
    task = TASKS.build(facts.task)
    language, words = task.metric == "perplexity", isinstance(task, TokenLabels)
    if len(lengths) > 1 and (language or words):
        what, ones = ("a language model", "tokens") if language else ("token labels", "words")
        raise ConfigError(
            f"FP1442 {search.path}: tokens can't be searched for {what}: losses are means over {ones}, and "
            "examples of other lengths have other {ones}; set one number in [base]"
        )
    if not language:
        return
    first, *others = [facts.default_model if model == "auto" else model for model in models]
    tokens = load_tokenizer(resolve_model(first)).get_vocab()
    for model in others:
        if load_tokenizer(resolve_model(model)).get_vocab() != tokens:
            raise ConfigError(
                f"FP1443 {search.path}: {first} and {model} have different tokenizers, so losses per token can't be "
                "compared; search among models with one tokenizer"
            )

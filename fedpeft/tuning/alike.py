"""What trials must have in common, so that their losses can be compared.

A language model is judged by the next token. Other lengths ask for other tokens, and other tokenizers for tokens that
are longer or shorter, whose losses are of another unit. Where words are labelled, other lengths ask for other words.
"""

from __future__ import annotations

from collections.abc import Callable

from fedpeft.config import RunConfig
from fedpeft.data.tokens import load_tokenizer
from fedpeft.errors import ConfigError
from fedpeft.models.base_model import resolve_model
from fedpeft.models.task import TASKS
from fedpeft.models.tasks.token_labels import TokenLabels
from fedpeft.tuning.search_file import Search
from fedpeft.wiring.dataset_info import DatasetInfo


def check_tokens(search: Search, facts_of: Callable[[RunConfig], DatasetInfo]) -> None:
    """Refuse a search among lengths or tokenizers of a language model, or among lengths where words are labelled.

    Args:
        search: what is searched; its rows are read only where it has several lengths or models.
        facts_of: of the rows of a configuration.

    Raises:
        ConfigError: its trials could not be compared.
        FedpeftError: rows, models or tokenizers can't be read.
    """
    lengths, models = search.lengths(), list(search.list_models())
    if len(lengths) == len(models) == 1:
        return
    facts = facts_of(search.build_corner({}))
    task = TASKS.build(facts.task)
    language, words = task.metric == "perplexity", isinstance(task, TokenLabels)
    if len(lengths) > 1 and (language or words):
        what, ones = ("a language model", "tokens") if language else ("labels of words", "words")
        raise ConfigError(
            f"FP1442 {search.path}: tokens can't be searched for {what}: losses are means over {ones}, and rows of "
            "other lengths have other ones; state one number in [base]"
        )
    if not language:
        return
    first, *others = [facts.default_model if model == "auto" else model for model in models]
    tokens = load_tokenizer(resolve_model(first)).get_vocab()
    for model in others:
        if load_tokenizer(resolve_model(model)).get_vocab() != tokens:
            raise ConfigError(
                f"FP1443 {search.path}: {first} and {model} have other tokens each, so that losses per token can't be "
                "compared; search among models with one tokenizer"
            )

"""The tables of docs/rules.md: purpose, cost and combinations of each strategy, PEFT method and mechanism."""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
from functools import cache
from pathlib import Path
from statistics import mean

import torch

from experiments.families.checkpoints import Family
from experiments.reference.tables import format_rows
from fedpeft.aggregation.abilities import AsksClients, PersonalModel, RankSchedule
from fedpeft.aggregation.grouped_rules import GroupedStrategy
from fedpeft.aggregation.shared_sums import is_plain_sum, is_sum_of_clients
from fedpeft.aggregation.strategy import GatherStrategy, LinearStrategy, Strategy, list_preserving_strategies
from fedpeft.errors import FedpeftError
from fedpeft.parts.families import MECHANISMS, PEFT_METHODS, SERVER_OPTIMIZERS, TASKS, strategies
from fedpeft.peft.abilities import ViewedAsFactors
from fedpeft.peft.adapter import Layout
from fedpeft.peft.method import PeftMethod
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.wiring.checks.rules import check_method, check_server

WIDTH, INNER, BLOCKS, HEADS = 384, 1536, 6, 12
"""Sizes of MiniLM, the default text model, for counts of trained parameters."""


def combinations() -> str:
    """Return the tables of all parts as Markdown."""
    tables: dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]] = {
        "Strategies": (
            ("strategy", "what it is", "use it", "paper", "bytes up", "server"),
            [_describe_strategy(name, strategies.part(name)) for name in strategies.names],
        ),
        "PEFT methods": (
            ("method", "what it is", "use it", "paper", "bytes up", "compute"),
            [_describe_method(name, PEFT_METHODS.part(name)) for name in PEFT_METHODS.names],
        ),
        "What strategies go with": (
            ("strategy", "PEFT methods", "ranks may differ", "error feedback", "server optimizers", "`user_dp`",
             "`secure_sum`", "personal"),
            [_build_strategy_row(name, strategies.part(name)) for name in strategies.names],
        ),
        "What PEFT methods go with": (
            ("method", "strategies", "sizes may differ", "all clients in one pass", "`dp_sgd`", "merges",
             "in peft's format", "joined by +"),
            [_build_method_row(name, PEFT_METHODS.part(name)) for name in PEFT_METHODS.names],
        ),
        "Mechanisms": (
            ("mechanism", "what it is", "privacy unit", "noise is that of"),
            [
                (f"`{name}`", _get_first_line(MECHANISMS.part(name)), _describe_privacy_unit(name),
                 _describe_subject(name))
                for name in MECHANISMS.names
            ],
        ),
    }  # fmt: skip
    return "\n".join(f"## {title}\n\n{format_rows(heads, lines)}" for title, (heads, lines) in tables.items())


def find_use(part: type) -> str:
    """Return what follows "Use it" in the docstring of a part's module; empty: it has no such sentence."""
    match = re.search(r"(?:^|\n)Use it (.+?)(?:\n\n|$)", inspect.getdoc(sys.modules[part.__module__]) or "", re.DOTALL)
    return re.sub(r"\s+", " ", match[1]).rstrip(".") if match else ""


def find_paper(part: type) -> str:
    """Return the first source in the docstring of a part's module, with a link and the year; empty: it names none."""
    text = re.sub(r"\s+", " ", inspect.getdoc(sys.modules[part.__module__]) or "")
    if re.search(r"\bown (?:rule|method)\b", text, re.IGNORECASE):
        return "own"
    if source := re.search(r"Source: (https://\S+?),? ", text):
        return f"[{source[1].removeprefix('https://')}]({source[1]})"
    if (paper := re.search(r"([^();]*?)arXiv (\d{4}\.\d{5})", text)) is None:
        return ""
    authors = re.sub(r'"[^"]*",? ?', "", paper[1]).rpartition(": ")[2].strip(" ,")
    year = "" if re.search(r"\b20\d\d\b", authors) else f"20{paper[2][:2]}"
    return ", ".join(filter(None, (authors, year, f"[{paper[2]}](https://arxiv.org/abs/{paper[2]})")))


def _describe_strategy(name: str, part: type[Strategy]) -> tuple[str, ...]:
    server = "one sum" if issubclass(part, LinearStrategy) else "all updates"
    server = "all updates, layer by layer" if issubclass(part, GatherStrategy) else server
    return (f"`{name}`", _get_first_line(part), find_use(part), find_paper(part), compute_uplink(name), server)


def _describe_method(name: str, part: type[PeftMethod]) -> tuple[str, ...]:
    described = f"`{name}`", _get_first_line(part), find_use(part), find_paper(part)
    if name not in create_layouts():
        return (*described, "", "")
    method, layout = create_layouts()[name]
    size = count_numbers(layout)
    compute = "longer inputs" if method.extra_tokens else "adapter" if size else "head only"
    if method.whole_model:
        compute = "all weights"
    return (*described, f"{size / count_numbers(create_layouts()['lora'][1]):.2g}" if size else "head only", compute)


def count_numbers(layout: Layout) -> int:
    """Count the trained numbers of an adapter, the head aside."""
    return sum(tensor.numel for tensor in layout.tensors if tensor.role != "head")


def compute_uplink(name: str) -> str:
    """Return the share of a method's trained numbers that a client sends in a round: the mean of four rounds."""
    strategy = strategies.build(GIVEN.get(name, name))
    taken = list_methods(name)
    layout = create_layouts()["lora" if "lora" in taken else taken[0]][1]
    left_out = strategy.list_private(layout) | {tensor.name for tensor in layout.tensors if tensor.role == "head"}
    sent = [strategy.list_trained(layout, number) - left_out for number in range(1, 5)]
    counts = [sum(tensor.numel for tensor in layout.tensors if tensor.name in names) for names in sent]
    return f"{mean(counts) / count_numbers(layout):.2g}"


def _build_strategy_row(name: str, part: type[Strategy]) -> tuple[str, ...]:
    own = part.list_private is not Strategy.list_private or issubclass(part, PersonalModel | GroupedStrategy)
    linear = is_plain_sum(part) and not issubclass(part, AsksClients)
    remembers = not (part.new_factors or issubclass(part, RankSchedule))
    words = part.mixed_ranks, remembers, _has_optimizers(name), linear, is_sum_of_clients(part), own
    return (f"`{name}`", _format_names(list_methods(name)), *map(_format_bool, words))


def _has_optimizers(name: str) -> bool:
    try:
        check_server(strategies.build(GIVEN.get(name, name)), SERVER_OPTIMIZERS.build("momentum"))
    except FedpeftError:
        return False
    return True


GIVEN = {"flower": "flower(rule=FedMedian)"}
"""Strategies with a required setting, each with a legal value."""


def list_methods(name: str) -> list[str]:
    """Return the methods that a strategy supports, according to a run's checks on a tiny classifier."""
    strategy = strategies.build(GIVEN.get(name, name))
    found = []
    for peft, (method, layout) in create_layouts().items():
        try:
            check_method(method, strategy, [method.form])
            if not isinstance(method, ViewedAsFactors):
                strategy.check(layout, [method.form])
        except FedpeftError:
            continue
        found.append(peft)
    return found


@cache
def create_layouts() -> dict[str, tuple[PeftMethod, Layout]]:
    """Return each method with its layout in a model of MiniLM's sizes; those that need finished runs are left out."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": BLOCKS,
             "num_attention_heads": HEADS, "max_position_embeddings": 512}  # fmt: skip
    task = TASKS.build("classification")
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Family("BertConfig", "BertModel", sizes=sizes).save(folder, "classification")
        for peft in PEFT_METHODS.names:
            try:
                method = PEFT_METHODS.build(peft)
                model = task.model(task.base(folder, torch.float32), 4)
                method.attach(model, "fp32")
            except FedpeftError:
                continue
            found[peft] = method, method.layout(model)
    return found


def _format_names(taken: list[str]) -> str:
    """Return a short list of names, or "all but" with the missing names if these are fewer."""
    missing = [peft for peft in create_layouts() if peft not in taken]
    if not missing:
        return "all"
    return ", ".join(taken) if len(taken) <= len(missing) else "all but " + ", ".join(missing)


def _build_method_row(name: str, part: type[PeftMethod]) -> tuple[str, ...]:
    said = (part.mixed_sizes, part.batched, part.privacy != "refused", part.merges, part.in_peft, part.composes)
    taken = ", ".join(list_preserving_strategies(part.joint_meaning)) if part.joint_meaning else "see above"
    return (f"`{name}`", taken, *map(_format_bool, said))


def _describe_subject(name: str) -> str:
    mechanism = MECHANISMS.build(name)
    if isinstance(mechanism, SumMechanism):
        return "the sum"
    return "each row's gradient" if mechanism.per_example else "updates"


def _describe_privacy_unit(name: str) -> str:
    said = MECHANISMS.part(name).privacy_unit
    return said if isinstance(said, str) else "by its settings"


def _get_first_line(part: type) -> str:
    return (inspect.getdoc(part) or "").split("\n")[0].rstrip(".")


def _format_bool(true: bool) -> str:
    return "yes" if true else ""

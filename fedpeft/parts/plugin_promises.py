"""Checks that a plugin's class keeps the interface of the fedpeft class or protocol that it implements.

The class must define all methods, with the arguments that fedpeft passes, and each method must return the annotated
type. Without these checks, a run would fail inside fedpeft with an error that does not name the user's file.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import itertools
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from fedpeft.errors import ConfigError

_NUMBERS = {float: numbers.Real, int: numbers.Integral}

RENAMED: Mapping[str, Mapping[str, str]] = {
    "Strategy": {
        "aggregated": "aggregate_groups", "asked": "choose_question", "asks": "choose_question",
        "asynchronous": "get_buffer_size", "contributed": "select_update", "next_form": "choose_next_form",
        "personal_pull": "get_personal_pull", "prepared": "prepare_start", "private": "list_private",
        "pull": "compute_pull", "ranks": "choose_ranks", "remembering": "aggregate_with_memory",
        "reweigh": "compute_shares", "still": "list_frozen", "submitted": "select_update", "trained": "list_trained",
        "turned": "cross_boundary",
    },
    "HeadStart": {
        "fitted": "fit_to_targets", "hidden": "find_hidden_classes", "whitening": "compute_whitening",
    },
    "ServerOptimizer": {"gentler": "slow_down", "noised": "correct_for_noise"},
    "Task": {
        "judged": "evaluate_losses", "regressed": "compute_regression_data", "told_head": "export_head",
    },
    "PeftMethod": {
        "factoring": "create_factor_view", "fitted": "fit_when_finished", "merged": "merge_adapter",
        "owned": "compute_owned_shares", "sized": "get_settings_for", "strategies": "joint_meaning",
    },
    "Mechanism": {
        "audible": "least_signal", "audible_entries": "count_trainable_entries", "dealt": "cohort_form",
        "divisor": "example_sampling", "hears": "has_signal", "hides": "privacy_unit",
        "planned_training": "plan_training", "released": "protect_update", "row_rate": "example_sampling",
        "start_released": "start_release", "start_summed": "start_release", "start_taken": "start_release",
    },
    "Question": {"all_shapes": "get_all_shapes", "sums": "compute_sums"},
    "LocalOptimizer": {
        "decays": "moves_idle_entries", "full_steps": "count_full_steps", "probes": "get_probe_distance",
        "started": "create_optimizer", "told": "prepare",
    },
    "LocalWork": {"walk": "continues_walk", "walks": "continues_walk"},
    "Correction": {"clipped": "mask_for_clipping"},
    "UserHook": {"reported": "note_report", "saved": "get_checkpoint"},
}  # fmt: skip
"""Members that plugins could override before version 0.3.0, with their names since, by the class of the family.

Only those are here whose absence nothing else reports: a part under an old name would load, and never be called.
"""


def hold(cls: type, kind: type, who: str, abilities: Collection[type] = ()) -> None:
    """Check a plugin's class against the interface of `kind` and of its other fedpeft base classes.

    Its methods are wrapped, so that each call also checks the type of the result.

    Args:
        cls: the plugin's class, which is changed in place.
        kind: the class or protocol that all parts of the group implement.
        who: the part's name, with which error messages begin.
        abilities: further protocols that a part of this group may implement.

    Raises:
        ConfigError: a method is missing or does not take the promised arguments, or an attribute has a wrong type.
    """
    own_classes = list(itertools.filterfalse(_is_ours, cls.__mro__))
    promisers = list(filter(_is_ours, (*cls.__mro__, *kind.__mro__, *abilities)))
    own_members, promised = set[str]().union(*map(vars, own_classes)), set[str]().union(*map(vars, promisers))
    settings = getattr(cls, "__dataclass_fields__", {})
    methods = own_members - settings.keys()
    for old, new in RENAMED.get(kind.__name__, {}).items():
        if old in methods - promised and new not in methods:
            raise ConfigError(f"FP1526 {who} defines {old}, which is called {new} since version 0.3.0; rename it")
    _refuse_gaps(cls, kind, who)
    for name, due in _find_attributes(cls, kind).items():
        if not hasattr(cls, name) or name in own_members:
            _check_attribute(getattr(cls, name, None), due, f"{who}: {name}")
    for owner in own_classes:
        for name, own in {**dict.fromkeys(inspect.get_annotations(owner)), **vars(owner)}.items():
            promiser = _find_promiser(promisers, name)
            if promiser is None:
                continue
            what = f"{who}: {name}"
            if promiser in abilities:
                what += f" of the ability {promiser.__name__} (a helper or setting needs another name)"
            held = _hold_member(own, vars(promiser)[name], what, name in settings)
            if held is not own:
                setattr(owner, name, held)


def _refuse_gaps(cls: type, kind: type, who: str) -> None:
    """Refuse a class that leaves out what each part of its family defines.

    Raises:
        ConfigError: names the methods.
    """
    if inspect.isabstract(cls):
        lacking = ", ".join(sorted(vars(cls)["__abstractmethods__"]))
        raise ConfigError(
            f"FP1253 {who} does not define what {kind.__module__}.{kind.__qualname__} requires: {lacking}"
        )
    choices = getattr(kind, "needs_one_of", ())
    if choices and all(getattr(cls, name) is getattr(kind, name) for name in choices):
        raise ConfigError(f"FP1527 {who} defines neither {' nor '.join(choices)}; define one of them")


def _hold_member(own: Any, promised: Any, what: str, is_setting: bool) -> Any:
    """Return a member of a class from outside, a method with a check of its results.

    Raises:
        ConfigError: it can't be used as the `promised` one.
    """
    if isinstance(promised, property | classmethod) and inspect.isfunction(own):
        raise ConfigError(
            f"FP1254 {what} is a {type(promised).__name__} in its base class; write @{type(promised).__name__} above it"
        )
    if isinstance(promised, classmethod) and isinstance(own, classmethod):
        return classmethod(_wrap_method(own.__func__, promised.__func__, what))
    if not inspect.isfunction(promised):
        return own
    if is_setting or not (callable(own) or isinstance(own, staticmethod | classmethod)):
        raise ConfigError(f"FP1255 {what} must be a method, got {own!r:.80}")
    return _wrap_method(own, promised, what) if inspect.isfunction(own) else own


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("fedpeft", "builtins", "abc", "typing")


def _find_attributes(cls: type, kind: type) -> dict[str, Any]:
    """Return the types of all attributes that fedpeft's base classes annotate, except fields without a default."""
    found: dict[str, Any] = {}
    for base in filter(_is_ours, (*cls.__mro__, *kind.__mro__)):
        for name, due in inspect.get_annotations(base).items():
            written = type(base.__name__, (), {"__annotations__": {name: due}, "__module__": base.__module__})
            try:
                told = typing.get_type_hints(written)[name]
            except NameError:  # a name that only type checkers import
                continue
            found.setdefault(name, typing.get_args(told)[0] if typing.get_origin(told) is typing.ClassVar else told)
    fields = getattr(cls, "__dataclass_fields__", {})
    return {name: due for name, due in found.items() if hasattr(cls, name) or name not in fields}


def _check_attribute(value: Any, due: Any, what: str) -> None:
    """Raise ConfigError unless a class attribute has the annotated type; properties of objects are not checked."""
    if isinstance(value, property | functools.cached_property):
        return
    if typing.get_origin(due) is typing.Literal:
        if value not in typing.get_args(due):
            legal = ", ".join(map(repr, typing.get_args(due)))
            raise ConfigError(f"FP1256 {what} must be one of {legal}, got {value!r:.80}")
    elif not is_of_type(value, due):
        raise ConfigError(f"FP1257 {what} must be of the type {format_type(due)}, got {_describe_value(value)}")


def _find_promiser(promisers: Iterable[type], name: str) -> type | None:
    """Return the first of fedpeft's classes with a member of this name; None: they have none."""
    if name.startswith("__"):
        return None
    return next((base for base in promisers if name in vars(base)), None)


def _wrap_method(own: Callable[..., Any], promised: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return the method with a check of its result; raise ConfigError unless it takes the promised arguments."""
    if getattr(own, "__held__", False):
        return own
    given = inspect.signature(promised).parameters.values()
    plain = [p.name for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = {p.name: None for p in given if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(own).bind(*plain, **named)
    except TypeError as error:
        takes, called = (f"({', '.join(inspect.signature(one).parameters)})" for one in (own, promised))
        raise ConfigError(f"FP1258 {what} takes {takes}, and is called with {called}: {error}") from error
    return _check_result(own, promised, what)


def _check_result(own: Callable[..., Any], promised: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return the method with a check of its result if the interface annotates a type for it."""
    try:
        written = types.SimpleNamespace(__annotations__={"return": inspect.signature(promised).return_annotation})
        due = typing.get_type_hints(written, promised.__globals__)["return"]
    except NameError:  # a name that only type checkers import
        return own
    if due in (Any, type(None), inspect.Signature.empty):
        return own

    @functools.wraps(own)
    def held(*given: Any, **named: Any) -> Any:
        made = own(*given, **named)
        if not is_of_type(made, due):
            raise ConfigError(f"FP1259 {what} must return {format_type(due)}, and returned {_describe_value(made)}")
        return made

    held.__held__ = True  # type: ignore[attr-defined]
    return held


def is_of_type(value: Any, due: Any) -> bool:
    """Return whether a value has the annotated type. Iterators and lists are not read to their end."""
    origin, inner = typing.get_origin(due), typing.get_args(due)
    if origin in (typing.Union, types.UnionType):
        return any(is_of_type(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if isinstance(due, typing.TypeVar) or due is Any:
        return True
    if due is None:
        return value is None
    plain = _NUMBERS.get(due, origin or due)
    try:
        if not isinstance(value, plain):
            return False
    except TypeError:  # a protocol, of which only calls can tell
        return True
    if plain is tuple and inner and Ellipsis not in inner and len(value) != len(inner):
        return False
    return all(is_of_type(part, one) for part, one in _iterate_items(value, plain, inner))


def _iterate_items(value: Any, plain: Any, inner: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Yield the items of a container, each with its type; iterators yield nothing, since they would be used up."""
    if plain is tuple and inner:
        yield from zip(value, [inner[0]] * len(value) if Ellipsis in inner else inner, strict=True)
    elif inner and issubclass(plain, dict | collections.abc.Mapping):
        for key, part in value.items():
            yield from ((key, inner[0]), (part, inner[1]))


def format_type(due: Any) -> str:
    """Return a type as a user would write it."""
    return inspect.formatannotation(due).replace("torch._tensor.", "").replace("typing.", "")


def _describe_value(value: Any) -> str:
    kind = type(value).__qualname__
    if isinstance(value, tuple | dict):
        held = {type(one).__qualname__ for one in (value.values() if isinstance(value, dict) else value)}
        return f"a {kind} of {', '.join(sorted(held))}" if held else f"an empty {kind}"
    return (
        "None" if value is None else f"a {kind}" + (f" ({value!r:.60})" if isinstance(value, str | int | float) else "")
    )

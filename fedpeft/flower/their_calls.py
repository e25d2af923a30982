"""Calls of a Flower strategy's own methods with one cohort: what it would send, and what it makes of the replies.

Flower has two kinds. One uses messages (`flwr.serverapp.strategy.Strategy`: `configure_train`, `aggregate_train`), the
older one parameters (`flwr.server.strategy.Strategy`: `configure_fit`, `aggregate_fit`). Both are first asked what they
would send, for two reasons. Some remember it (FedAdam). And it must be what fedpeft's clients have received: the same
arrays, to the whole cohort, without other settings.

Source: https://github.com/flwrlabs/flower, version 1.42.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.serverapp import Grid

from fedpeft.communication.flower_grid import allow_local_messages, create_local_reply, get_node_id
from fedpeft.errors import FedpeftError, RunError

Arrays = dict[str, np.ndarray[Any, Any]]

ROUND_KEYS: Final = frozenset({"server-round", "server_round", "round", "current_round"})
"""Keys that a strategy may put into its clients' configuration: they have the round already."""

MOST_LOOKS: Final = 8
"""How often a strategy may look at the present clients before it counts as waiting for more."""


@dataclass(frozen=True)
class TrainedArrays:
    """A client's arrays after its training, and its weight, a whole number if it counts examples."""

    client: int
    arrays: Arrays
    weight: float

    @property
    def examples(self) -> float | int:
        """The weight, as an int if it is a whole number."""
        return int(self.weight) if float(self.weight).is_integer() else float(self.weight)


@contextmanager
def raise_as_rule_error(method: str, round_number: int) -> Iterator[None]:
    """Turn an error in a foreign method into one sentence with its place.

    Raises:
        RunError: the method has raised something.
    """
    try:
        yield
    except FedpeftError:
        raise
    except (Exception, AppExitException) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(
            f"FP5137 {method} failed in round {round_number}: {said} ({last.filename}, line {last.lineno})"
        ) from error


def ask_strategy(rule: Any, round_number: int, arrays: Arrays, cohort: Sequence[int]) -> None:
    """Ask a strategy what it would send to a cohort.

    Raises:
        RunError: it is not what clients have received, or the strategy has failed.
    """
    name = type(rule).__name__
    if hasattr(rule, "configure_train"):
        method = f"{name}.configure_train"
        allow_local_messages()
        with raise_as_rule_error(method, round_number):
            sent = list(rule.configure_train(round_number, record(arrays), ConfigRecord(), _Grid(name, cohort)))
        nodes = {message.metadata.dst_node_id for message in sent}
        _check_cohort(method, [client for client in cohort if get_node_id(client) in nodes], len(sent), cohort)
        for content in {id(message.content): message.content for message in sent}.values():
            _check_record(method, content, arrays)
        return
    method = f"{name}.configure_fit"
    manager = _Manager(name, cohort)
    with raise_as_rule_error(method, round_number):
        instructions = list(rule.configure_fit(round_number, convert_to_parameters(arrays), manager))
    _check_cohort(method, [int(proxy.cid) for proxy, _ in instructions], len(instructions), cohort)
    for instruction in {id(given): given for _, given in instructions}.values():
        _check_instruction(method, instruction, arrays)


def aggregate_arrays(rule: Any, round_number: int, arrays: Arrays, cohort: Sequence[TrainedArrays]) -> Arrays:
    """Return what a strategy makes of a cohort's arrays.

    Raises:
        RunError: the strategy has failed, or returns no arrays, other arrays, or some that are not finite.
    """
    name = type(rule).__name__
    if hasattr(rule, "aggregate_train"):
        method = f"{name}.aggregate_train"
        allow_local_messages()
        replies = [_create_reply(trained) for trained in cohort]
        with raise_as_rule_error(method, round_number):
            gathered, _ = rule.aggregate_train(round_number, replies)
        found = None if gathered is None else {key: np.array(array.numpy()) for key, array in gathered.items()}
    else:
        method = f"{name}.aggregate_fit"
        results = [(_Proxy(name, t.client), _create_result(t)) for t in cohort]
        with raise_as_rule_error(method, round_number):
            gathered, _ = rule.aggregate_fit(round_number, results, [])
            listed = None if gathered is None else parameters_to_ndarrays(gathered)
        if listed is not None and len(listed) != len(arrays):
            raise RunError(
                f"FP5138 {method} returned {len(listed)} arrays in round {round_number} instead of {len(arrays)}"
            )
        found = None if listed is None else dict(zip(arrays, listed, strict=True))
    if found is None:
        raise RunError(
            f"FP5139 {method} returned no arrays in round {round_number}: it refuses the replies of a cohort of "
            f"{len(cohort)} clients"
        )
    _check_made(method, round_number, found, arrays)
    return found


def initialize_strategy(rule: Any, arrays: Arrays, cohort: Sequence[int]) -> bool:
    """Let the older kind of strategy choose its start; return whether that is what it was given, or nothing.

    Raises:
        RunError: it has failed.
    """
    if not hasattr(rule, "initialize_parameters"):
        return True
    name = type(rule).__name__
    with raise_as_rule_error(f"{name}.initialize_parameters", 0):
        given = rule.initialize_parameters(_Manager(name, cohort))
        listed = None if given is None else parameters_to_ndarrays(given)
    return listed is None or _is_equal(listed, list(arrays.values()))


def record(arrays: Arrays) -> ArrayRecord:
    """Return arrays as Flower's record."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def convert_to_parameters(arrays: Arrays) -> Parameters:
    """Return arrays as the older kind of strategy takes them: without names, in this order."""
    return ndarrays_to_parameters(list(arrays.values()))


def _create_reply(trained: TrainedArrays) -> Any:
    metrics = MetricRecord({"num-examples": trained.examples})
    return create_local_reply(trained.client, RecordDict({"arrays": record(trained.arrays), "metrics": metrics}))


def _create_result(trained: TrainedArrays) -> FitRes:
    return FitRes(Status(Code.OK, ""), convert_to_parameters(trained.arrays), trained.examples, {})  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- what is refused


def _check_cohort(method: str, chosen: Sequence[int], messages: int, cohort: Sequence[int]) -> None:
    """Refuse any choice of clients other than the whole cohort.

    Raises:
        RunError: names the method and the numbers of clients.
    """
    if len(chosen) != len(cohort) or messages != len(cohort) or set(chosen) != set(cohort):
        raise RunError(
            f"FP5140 {method} asks {messages} of a cohort's {len(cohort)} clients: --cohort draws each round's "
            "clients before the strategy is called; send a message to each of these clients"
        )


def _check_settings(method: str, config: Mapping[str, Any]) -> None:
    """Refuse settings for clients.

    Raises:
        RunError: names the settings.
    """
    if others := sorted(set(config) - ROUND_KEYS):
        raise RunError(
            f"FP5141 {method} sends clients the settings {', '.join(others)}, which nothing here reads: local training "
            "is set by --learning-rate, --local-work, --optimizer, and --drift 'fedprox(mu=0.01)'"
        )


def _check_record(method: str, content: RecordDict, arrays: Arrays) -> None:
    sent = [content[name] for name in content]
    for config in (part for part in sent if isinstance(part, ConfigRecord)):
        _check_settings(method, config)
    records = [part for part in sent if isinstance(part, ArrayRecord)]
    same = len(records) == 1 and list(records[0]) == list(arrays)
    if not same or not _is_equal([array.numpy() for array in records[0].values()], list(arrays.values())):
        _refuse_arrays(method)
    if any(isinstance(part, MetricRecord) for part in sent):
        raise RunError(f"FP5142 {method} sends clients metrics, which nothing here reads; leave them out")


def _check_instruction(method: str, instruction: FitIns, arrays: Arrays) -> None:
    _check_settings(method, instruction.config)
    if not _is_equal(parameters_to_ndarrays(instruction.parameters), list(arrays.values())):
        _refuse_arrays(method)


def _refuse_arrays(method: str) -> NoReturn:
    raise RunError(
        f"FP5143 {method} sends clients other arrays than the global ones; choose what clients receive with "
        "--downlink, and each client's ranks with --strategy (fedpeft describe strategy)"
    )


def _check_made(method: str, round_number: int, found: Arrays, arrays: Arrays) -> None:
    if found.keys() != arrays.keys():
        raise RunError(
            f"FP5144 {method} returned other arrays in round {round_number} than it was given: {sorted(found)[:3]} ..."
        )
    for name, array in found.items():
        if array.shape != arrays[name].shape:
            raise RunError(
                f"FP5145 {method} returned {name} in the shape {array.shape} in round {round_number} instead of "
                f"{arrays[name].shape}"
            )
        if not np.isfinite(array).all():
            raise RunError(f"FP5146 {method} returned numbers for {name} in round {round_number} that are not finite")


def _is_equal(some: Sequence[np.ndarray[Any, Any]], others: Sequence[np.ndarray[Any, Any]]) -> bool:
    return len(some) == len(others) and all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


# ------------------------------------------------------------------------------------------ what strategies are shown


@dataclass
class _Grid(Grid):
    """A cohort, as strategies with messages see it; they can't send messages to it."""

    owner: str
    cohort: Sequence[int]
    looks: int = field(default=0, init=False)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the cohort."""
        self.looks += 1
        if self.looks > MOST_LOOKS:
            raise RunError(
                f"FP5147 {self.owner} waits for more clients than the {len(self.cohort)} of a cohort; ask for fewer "
                "(min_available_nodes), or give a larger --cohort"
            )
        return [get_node_id(client) for client in self.cohort]

    def _refuse(self, name: str) -> NoReturn:
        raise RunError(
            f"FP5148 {self.owner} calls grid.{name}, but a strategy can't send messages; remove the call, since "
            "fedpeft sends one message to each client per round"
        )

    @property
    def run(self) -> Any:
        """Refuse access."""
        self._refuse("run")

    def set_run(self, run: Any) -> None:
        """Refuse the call."""
        self._refuse("set_run")

    def create_message(self, *given: Any, **named: Any) -> Any:
        """Refuse the call."""
        self._refuse("create_message")

    def push_messages(self, messages: Any) -> Any:
        """Refuse the call."""
        self._refuse("push_messages")

    def pull_messages(self, message_ids: Any) -> Any:
        """Refuse the call."""
        self._refuse("pull_messages")

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        """Refuse the call."""
        self._refuse("send_and_receive")


class _Proxy(ClientProxy):
    """A client, as the older kind of strategy sees it: a number that can't be called."""

    def __init__(self, owner: str, client: int) -> None:
        super().__init__(str(client))
        self._owner = owner

    def _refuse(self, *given: Any, **named: Any) -> NoReturn:
        raise RunError(
            f"FP5149 {self._owner} calls a client; remove the call, since fedpeft sends one message to each "
            "client per round"
        )

    get_properties = get_parameters = fit = evaluate = reconnect = _refuse


class _Manager(ClientManager):
    """A cohort, as the older kind of strategy sees it."""

    def __init__(self, owner: str, cohort: Sequence[int]) -> None:
        self._owner = owner
        self._clients = {str(client): _Proxy(owner, client) for client in cohort}

    def num_available(self) -> int:
        """Return the size of the cohort."""
        return len(self._clients)

    def all(self) -> dict[str, ClientProxy]:
        """Return the clients of the cohort by id."""
        return dict(self._clients)

    def wait_for(self, num_clients: int, timeout: int = 0) -> bool:
        """Return True if the cohort has enough clients; refuse to wait for more.

        Raises:
            RunError: the strategy asks for more clients than the cohort has.
        """
        if num_clients > len(self._clients):
            raise RunError(
                f"FP5150 {self._owner} waits for {num_clients} clients, and a cohort has {len(self._clients)}; ask for "
                "fewer (min_available_clients), or give a larger --cohort"
            )
        return True

    def sample(self, num_clients: int, min_num_clients: int | None = None, criterion: Any = None) -> list[ClientProxy]:
        """Return the first clients of the cohort; choosing fewer than all is refused later."""
        self.wait_for(max(num_clients, min_num_clients or 0))
        found: list[ClientProxy] = [p for p in self._clients.values() if criterion is None or criterion.select(p)]
        return found[:num_clients]

    def register(self, client: ClientProxy) -> bool:
        """Refuse the call."""
        raise RunError(
            f"FP5151 {self._owner} registers clients, but the federation decides who takes part; remove the call"
        )

    def unregister(self, client: ClientProxy) -> None:
        """Refuse the call."""
        raise RunError(
            f"FP5152 {self._owner} unregisters clients, but the federation decides who takes part; remove the call"
        )

"""Corrections of client drift: local steps that lead clients to different optima.

    --drift "fedprox(mu=0.01) + scaffold + label_shift"

A correction adds a term to the gradients of a client's local steps. It may keep a state with each client, and one with
the server. The server's state then goes down with the model, and the changes of the clients' states come up. Both
halves are in one file of `fedpeft.clients.corrections`; several corrections act one after another. All states of a
message are one payload.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from fedpeft.aggregation.abilities import Buffered
from fedpeft.aggregation.strategy import RoundStrategy, Strategy
from fedpeft.aggregation.update import Fold
from fedpeft.communication.codec import Codec
from fedpeft.communication.decoding import decode_whole
from fedpeft.communication.payload import Shape
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.parts import format_part, name_of
from fedpeft.parts.families import CORRECTIONS
from fedpeft.parts.spec import split_outside_parentheses
from fedpeft.peft.adapter import AdapterShape, State

if TYPE_CHECKING:
    from fedpeft.clients.executor import Job, Trained
    from fedpeft.clients.local_training import LocalTraining

    from fedpeft.data.examples import Batch
    from fedpeft.models.task import FederatedModel, RowLosses

SHARES = "shares"
"""Name of the class shares among all examples in a payload."""

Pull = Callable[[str, Tensor], Tensor | None]
"""Returns what is added to a parameter's gradient, given its name and value, in its shape; None: nothing."""


def compute_pull(pull: Pull, name: str, value: Tensor) -> Tensor | None:
    """Return what a pull, possibly a plugin's, adds to the gradient of a parameter.

    Raises:
        ConfigError: the pull has another shape, which would be broadcast.
    """
    more = pull(name, value)
    if more is not None and more.shape != value.shape:
        whose = getattr(pull, "__qualname__", type(pull).__qualname__)
        raise ConfigError(
            f"FP1002 the correction's method pull {whose} returned shape {tuple(more.shape)} for {name}, which "
            f"has shape {tuple(value.shape)}; return the tensor's shape"
        )
    return more


States = Mapping[str, State]
"""States by the name of their correction."""


class Correction:
    """One correction. Subclasses are frozen dataclasses; their fields are the user's settings.

    What some corrections do in addition are the abilities below. A correction has an ability if it defines the method.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Endings of tensor names. At least one trained tensor must have one of them, or the correction can't act."""

    needs_shares: ClassVar[bool] = False
    """Whether it acts on the loss instead of the gradients: clients receive the class shares among all examples."""

    least: float = 0.0
    """Smallest label skew at which class shares act, 0 to 1 (`fedpeft.clients.label_shift.label_skew`)."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        return name_of(type(self))

    def check(self, strategy: Strategy, training: LocalTraining, forms: Collection[AdapterShape | None]) -> None:
        """Refuse settings under which the correction would be wrong; by default accept all.

        Args:
            strategy: the server's strategy.
            training: the clients' local training.
            forms: the clients' adapter shapes.

        Raises:
            ConfigError: the settings do not fit this correction; the message has a remedy.
        """

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """Return the pull that is added to the gradients of a job's steps; by default it adds nothing.

        Args:
            job: the client's work; `job.received` is what it starts from, on the device that trains.
            server: the server's state, for the tensors of updates; empty if no state travels.
            own: the client's state, for each tensor after the last recorded round that had it; empty at first.
        """
        return lambda name, value: None


@runtime_checkable
class KeepsState(Protocol):
    """A client keeps a state for the correction from round to round."""

    @abstractmethod
    def after(self, job: Job, result: Trained, server: State, own: State) -> State:
        """Return the client's next state."""


class ExchangedCorrection(Correction, KeepsState):
    """The server keeps a state, too. It goes down to the clients, and the changes of theirs come up."""

    def check(self, strategy: Strategy, training: LocalTraining, forms: Collection[AdapterShape | None]) -> None:
        """Refuse strategies and adapter shapes under which exchanged states lose their meaning.

        Raises:
            ConfigError: the settings do not fit this correction; the message has a remedy.
        """
        rule = type(strategy).__name__
        if isinstance(strategy, Buffered):
            raise ConfigError(
                f"FP1003 {self.name} compares a client with the other clients of its round, and {rule} has no "
                "common rounds; leave it out of --drift, or use --strategy fedit"
            )
        if isinstance(strategy, RoundStrategy) or strategy.new_factors:
            raise ConfigError(
                f"FP1004 {self.name} keeps states of parameters that mean the same in every round, but {rule} makes "
                "new factors; use fedit, ffa_lora, or another linear rule that keeps its factors"
            )
        if len(set(forms)) > 1:
            raise ConfigError(
                f"FP1005 {self.name} needs the same rank and alpha at all clients, whose states it averages"
            )

    def start(self, state: State) -> State:
        """Return the server's state before round 1, given the global `state`; by default zeros."""
        return {name: tensor.new_zeros(tensor.shape) for name, tensor in state.items()}

    def step(self, server: State, changes: Fold, clients: int) -> State:
        """Return the server's next state; by default it stays.

        Args:
            server: the state that clients received.
            changes: of the states of clients whose updates were accepted, each with weight 1; at least one.
            clients: number of all clients, in a round or not.
        """
        return server


class ControlVariates(ExchangedCorrection):
    """Control variates c (the server's) and c_k (a client's), 0 at first: gradients move by c - c_k."""

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """Return the pull c - c_k."""
        correction = compute_control_difference(server, own)

        def pull(name: str, value: Tensor) -> Tensor | None:
            return correction.get(name)

        return pull

    def step(self, server: State, changes: Fold, clients: int) -> State:
        """Return c + (1 / N) sum of the changes of c_k."""
        share = changes.weight / clients
        return server | {name: server[name] + share * change for name, change in changes.mean().items()}


def compute_control_difference(server: State, own: State) -> State:
    """Return c - c_k for the tensors of c; a missing c_k counts as 0."""
    return {name: c - own[name] if name in own else c for name, c in server.items()}


@runtime_checkable
class StartsMomentum(Protocol):
    """The local optimizer's momentum begins the round with a value of the correction's.

    `Trained.momentum` has its last value. The optimizer must have the ability `CarriesMomentum`.
    """

    @abstractmethod
    def choose_momentum(self, server: State, own: State) -> State:
        """Return the first momentum of some tensors, in their shapes; see `Correction.begin`."""


@runtime_checkable
class ChangesLoss(Protocol):
    """Local steps use another loss, for which no gradients per example exist."""

    def around(self, model: FederatedModel, losses: Callable[[Batch], RowLosses], batch: Batch) -> RowLosses:
        """Return the losses of a step, given how those of a batch are computed."""


@runtime_checkable
class SkipsSteps(Protocol):
    """Some tensors skip some steps."""

    def moves(self, name: str, step: int) -> bool:
        """Return whether a tensor takes a round's `step`, from 0."""


@runtime_checkable
class TurnsGradients(Protocol):
    """Steps use other gradients than those of the loss."""

    def direction(self, name: str, gradient: Tensor) -> Tensor | None:
        """Return the gradient that a step uses for a tensor, given its own one; None: that one.

        Under DP-SGD the given gradient is the noised one.
        """


@runtime_checkable
class ReducesNoise(Protocol):
    """`TurnsGradients.direction` averages the noise of DP-SGD."""

    def noise_left(self, name: str) -> float:
        """Return the share of the variance of a gradient's independent noise that `direction` leaves."""


@runtime_checkable
class MasksExamples(Protocol):
    """A part of the gradients per example is not used, so it must not count in clipping."""

    def mask_for_clipping(self, name: str, samples: Tensor) -> Tensor:
        """Return the part of a tensor's gradients per example, (rows, ...), that counts in clipping."""


@dataclass(frozen=True)
class ActiveCorrection:
    """A correction in one job, with the server's state and the client's."""

    correction: Correction
    server: State
    own: State

    def begin(self, job: Job) -> Pull:
        """Return the correction's pull, with its states on the device of the job's tensors."""
        device = next(iter(job.received.values())).device
        server, own = ({name: t.to(device) for name, t in state.items()} for state in (self.server, self.own))
        return self.correction.begin(job, server, own)


@dataclass(frozen=True)
class Drift:
    """The corrections of a run. Its text form round-trips through `parse_drift`."""

    corrections: tuple[Correction, ...] = ()

    @property
    def keeps(self) -> bool:
        """Whether clients keep states for a correction."""
        return any(isinstance(c, KeepsState) for c in self.corrections)

    @property
    def travels(self) -> bool:
        """Whether states go down and changes come up."""
        return any(isinstance(c, ExchangedCorrection) for c in self.corrections)

    @property
    def needs_shares(self) -> bool:
        """Whether clients receive the class shares among all examples."""
        return any(c.needs_shares for c in self.corrections)

    @property
    def changes_loss(self) -> bool:
        """Whether a correction replaces the loss of a step."""
        return any(isinstance(c, ChangesLoss) for c in self.corrections)

    @property
    def least_skew(self) -> float:
        """The smallest label skew at which clients receive these shares."""
        return min((c.least for c in self.corrections if c.needs_shares), default=0.0)

    def has_corrected_losses(self, told: Collection[str]) -> bool | None:
        """Return whether clients' losses are corrected, given the broadcast tensors; None: no correction does so."""
        return SHARES in told if self.needs_shares else None

    def __str__(self) -> str:
        """Return the corrections as on the command line."""
        return " + ".join(map(format_part, self.corrections))

    # ----------------------------------------------------------------------------------------------- the server's half

    def start(self, state: State) -> States:
        """Return the server's states before round 1."""
        return {c.name: c.start(state) for c in self.corrections if isinstance(c, ExchangedCorrection)}

    def step(self, server: States, changes: Mapping[str, Fold], clients: int) -> States:
        """Return the server's states after a round; see `ExchangedCorrection.step`."""
        exchanged = (c for c in self.corrections if isinstance(c, ExchangedCorrection))
        return {c.name: c.step(server[c.name], changes[c.name], clients) for c in exchanged}

    # ------------------------------------------------------------------------------------------------ the client's half

    def select_corrections(self, server: States, own: States) -> tuple[ActiveCorrection, ...]:
        """Return the corrections of a job, with the states that belong to it."""
        pulling = (c for c in self.corrections if not c.needs_shares)
        return tuple(ActiveCorrection(c, server.get(c.name, {}), own.get(c.name, {})) for c in pulling)

    def after(self, job: Job, result: Trained) -> tuple[States, States]:
        """Return a client's next states, and their changes for the server."""
        states: dict[str, State] = {}
        changes: dict[str, State] = {}
        for acting in job.corrections:
            correction, own = acting.correction, acting.own
            if not isinstance(correction, KeepsState):
                continue
            after = correction.after(job, result, acting.server, own)
            states[correction.name] = after
            if isinstance(correction, ExchangedCorrection):
                changes[correction.name] = {n: t - own[n] if n in own else t for n, t in after.items()}
        return states, changes

    # ----------------------------------------------------------------------------------------------------- what travels

    def encode(self, states: States, codec: Codec) -> bytes:
        """Return one payload of states, or of changes; empty if nothing travels."""
        flat = flatten_states(states)
        return codec.encode(flat) if flat else b""

    def decode(self, payload: bytes, shapes: Mapping[str, Shape]) -> States:
        """Return what `encode` was given, for tensors of these shapes.

        Raises:
            PayloadError: the payload does not fit the corrections of this run.
        """
        if not self.travels:
            if payload:
                raise PayloadError(
                    "FP6004 states of drift corrections arrived, and this run's settings have none that travel"
                )
            return {}
        labels = [c.name for c in self.corrections if isinstance(c, ExchangedCorrection)]
        flat = decode_whole(
            payload, {f"{label}/{name}": shape for label in labels for name, shape in shapes.items()}, agreed=()
        )
        return unflatten_states(flat)


def flatten_states(states: States) -> State:
    """Merge states into one, by the correction's name, a slash, and the tensor's name."""
    return {f"{label}/{name}": tensor for label, state in states.items() for name, tensor in state.items()}


def unflatten_states(flat: State) -> dict[str, State]:
    """Split what `flatten_states` has merged."""
    states: dict[str, State] = {}
    for name, tensor in flat.items():
        label, _, rest = name.partition("/")
        states.setdefault(label, {})[rest] = tensor
    return states


def parse_drift(text: str) -> Drift:
    """Return the corrections that `text` names, joined by "+"; none if it is empty.

    Raises:
        ConfigError: unknown correction or setting, value out of range, or the same correction twice.
    """
    if not text.strip():
        return Drift()
    corrections = tuple(CORRECTIONS.build(spec) for spec in split_outside_parentheses(text, "+"))
    names = [c.name for c in corrections]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"FP1006 {text!r} names {', '.join(sorted(twice))} twice; name it once")
    alternating = [c.name for c in corrections if isinstance(c, SkipsSteps)]
    variates = [c.name for c in corrections if isinstance(c, ExchangedCorrection)]
    if alternating and variates:
        raise ConfigError(
            f"FP1007 {variates[0]} needs every tensor to be trained in every local step, but {alternating[0]} "
            "trains them in turn; leave one of the two out"
        )
    return Drift(corrections)

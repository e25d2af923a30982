"""Corrections of client drift: what is done about clients whose local steps lead them to optima of their own.

    --drift "fedprox(mu=0.01) + scaffold + label_shift"

A correction adds something to the gradients of a client's local steps. It may keep a state with each client, and one
with the server, which then goes down with the model while the changes of the clients' states come up. Both halves are
in one file of `fedpeft.clients.corrections`; several corrections act one after another. In a message all that travels
is one payload.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fedpeft.aggregation.abilities import Buffered
from fedpeft.aggregation.strategy import RoundStrategy, Strategy
from fedpeft.aggregation.update import Fold
from fedpeft.communication.codec import Codec
from fedpeft.communication.decoding import decode_whole
from fedpeft.communication.payload import Shape
from fedpeft.errors import ConfigError, PayloadError
from fedpeft.families import CORRECTIONS as CORRECTIONS
from fedpeft.parts import format_part, name_of
from fedpeft.peft.adapter import AdapterShape, State
from fedpeft.spec import split_outside_parentheses

if TYPE_CHECKING:
    from fedpeft.clients.executor import Job, Trained
    from fedpeft.clients.local_training import LocalTraining

    from fedpeft.data.examples import Batch
    from fedpeft.models.task import FederatedModel, RowLosses

SHARES = "shares"
"""What the classes' shares among all rows are called in a payload."""

Pull = Callable[[str, Tensor], Tensor | None]
"""Of a parameter's name and value: what is added to its gradient, in its shape; None: nothing."""


def compute_pull(pull: Pull, name: str, value: Tensor) -> Tensor | None:
    """What a pull, which may be anybody's, adds to the gradient of a parameter.

    Raises:
        ConfigError: it would be stretched to fit.
    """
    more = pull(name, value)
    if more is not None and more.shape != value.shape:
        whose = getattr(pull, "__qualname__", type(pull).__qualname__)
        raise ConfigError(
            f"FP1002 the correction's pull {whose} gives shape {tuple(more.shape)} for {name}, whose is "
            f"{tuple(value.shape)}"
        )
    return more


States = Mapping[str, State]
"""By a correction's name."""


class Correction:
    """One correction. Subclasses are frozen dataclasses; their fields are the user's settings."""

    keeps: ClassVar[bool] = False
    """Whether a client has a state of its own, from round to round."""

    travels: ClassVar[bool] = False
    """Whether the server has one, too: it goes down to the clients, and the changes of theirs come up."""

    needs: ClassVar[tuple[str, ...]] = ()
    """How names of trained tensors end of which there must be some, for it to have anything to act on."""

    alternates: ClassVar[bool] = False
    """Whether there are steps that not all tensors take (`moves`)."""

    needs_shares: ClassVar[bool] = False
    """Whether it acts on the loss instead of the gradients: clients are told the classes' shares among all rows."""

    least: float = 0.0
    """Of those: the label skew from which on they act, 0 to 1 (`fedpeft.clients.label_shift.label_skew`)."""

    changes_loss: ClassVar[bool] = False
    """Whether local steps have another loss (`around`), which gradients per example are not made of."""

    @property
    def name(self) -> str:
        """As on the command line."""
        return name_of(type(self))

    def check(self, strategy: Strategy, training: LocalTraining, forms: Collection[AdapterShape | None]) -> None:
        """Refuse what the correction would be wrong with; by default, where states travel, what they lose meaning in.

        Args:
            strategy: of the server.
            training: of the clients.
            forms: of the clients' adapters.

        Raises:
            ConfigError: says what, and what to do.
        """
        if not self.travels:
            return
        rule = type(strategy).__name__
        if isinstance(strategy, Buffered):
            raise ConfigError(
                f"FP1003 {self.name} corrects against this round's other clients, and {rule} has no common round"
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

    def begin(self, job: Job, server: State, own: State) -> Pull:
        """What is added to the gradients of a job's steps.

        Args:
            job: what the client does; `job.received` is what it starts from, on the device that trains.
            server: the server's state, of the tensors that updates hold; empty where none travels.
            own: the client's state, of each tensor after the last recorded round that had it; empty at first.
        """
        raise NotImplementedError

    def around(self, model: FederatedModel, losses: Callable[[Batch], RowLosses], batch: Batch) -> RowLosses:
        """The losses of a step, given how those of a batch are computed; by default these."""
        return losses(batch)

    def moves(self, name: str, step: int) -> bool:
        """Whether a tensor takes a round's `step`, from 0; by default all take all."""
        return True

    def clipped(self, name: str, samples: Tensor) -> Tensor:
        """Of a tensor's gradients per example, (rows, ...), what has a say in their clipping; by default all."""
        return samples

    def direction(self, name: str, gradient: Tensor) -> Tensor | None:
        """What a step takes for a tensor's gradient, where rows are protected a noised one; None, the default: that."""
        return None

    def noise_left(self, name: str) -> float:
        """Share of the variance of independent noise in a tensor's gradient that `direction` leaves; by default 1."""
        return 1.0

    def after(self, job: Job, result: Trained, server: State, own: State) -> State:
        """The client's next state; by default there is none."""
        return {}

    def start(self, state: State) -> State:
        """The server's state before round 1, given the initial global `state`; where it travels, zeros."""
        return {name: tensor.new_zeros(tensor.shape) for name, tensor in state.items()} if self.travels else {}

    def step(self, server: State, changes: Fold, clients: int) -> State:
        """The server's next state; by default it stays.

        Args:
            server: as it was sent to the clients.
            changes: of the states of those whose updates were taken, each with weight 1; at least one.
            clients: how many there are, in a round or not.
        """
        return server


@dataclass(frozen=True)
class ActiveCorrection:
    """A correction in one job: with the server's state and the client's."""

    correction: Correction
    server: State
    own: State

    def begin(self, job: Job) -> Pull:
        """See `Correction.begin`; its states go to where the job's tensors are."""
        device = next(iter(job.received.values())).device
        server, own = ({name: t.to(device) for name, t in state.items()} for state in (self.server, self.own))
        return self.correction.begin(job, server, own)


@dataclass(frozen=True)
class Drift:
    """The corrections of a run. Its text form round-trips through `parse_drift`."""

    corrections: tuple[Correction, ...] = ()

    @property
    def keeps(self) -> bool:
        """Whether clients have states of their own."""
        return any(c.keeps for c in self.corrections)

    @property
    def travels(self) -> bool:
        """Whether states go down, and changes come up."""
        return any(c.travels for c in self.corrections)

    @property
    def needs_shares(self) -> bool:
        """Whether clients are told the classes' shares among all rows."""
        return any(c.needs_shares for c in self.corrections)

    @property
    def least_skew(self) -> float:
        """The label skew from which on clients are told these shares."""
        return min((c.least for c in self.corrections if c.needs_shares), default=0.0)

    def has_corrected_losses(self, told: Collection[str]) -> bool | None:
        """Whether clients' losses are corrected, given what they are told; None: nobody asked for it."""
        return SHARES in told if self.needs_shares else None

    def __str__(self) -> str:
        return " + ".join(map(format_part, self.corrections))

    # ----------------------------------------------------------------------------------------------- the server's half

    def start(self, state: State) -> States:
        """The server's states before round 1."""
        return {c.name: c.start(state) for c in self.corrections if c.travels}

    def step(self, server: States, changes: Mapping[str, Fold], clients: int) -> States:
        """The server's states after a round, see `Correction.step`."""
        return {c.name: c.step(server[c.name], changes[c.name], clients) for c in self.corrections if c.travels}

    # ------------------------------------------------------------------------------------------------ the client's half

    def select_corrections(self, server: States, own: States) -> tuple[ActiveCorrection, ...]:
        """The corrections in a job, with the states that belong to it."""
        pulling = (c for c in self.corrections if not c.needs_shares)
        return tuple(ActiveCorrection(c, server.get(c.name, {}), own.get(c.name, {})) for c in pulling)

    def after(self, job: Job, result: Trained) -> tuple[States, States]:
        """A client's next states, and the changes that it tells the server."""
        states: dict[str, State] = {}
        changes: dict[str, State] = {}
        for acting in job.corrections:
            correction, own = acting.correction, acting.own
            if not correction.keeps:
                continue
            after = correction.after(job, result, acting.server, own)
            states[correction.name] = after
            if correction.travels:
                changes[correction.name] = {n: t - own[n] if n in own else t for n, t in after.items()}
        return states, changes

    # ----------------------------------------------------------------------------------------------------- what travels

    def encode(self, states: States, codec: Codec) -> bytes:
        """The one payload of states, or of changes; empty where nothing travels."""
        flat = flatten_states(states)
        return codec.encode(flat) if flat else b""

    def decode(self, payload: bytes, shapes: Mapping[str, Shape]) -> States:
        """What `encode` was given, of tensors of these shapes.

        Raises:
            PayloadError: the payload is not one of this run's corrections.
        """
        if not self.travels:
            if payload:
                raise PayloadError(
                    "FP6004 states of drift corrections arrived, and this run's settings have none that travel"
                )
            return {}
        labels = [c.name for c in self.corrections if c.travels]
        flat = decode_whole(payload, {f"{label}/{name}": shape for label in labels for name, shape in shapes.items()})
        return unflatten_states(flat)


def flatten_states(states: States) -> State:
    """States in one, by the name of the correction, a slash, and the name of the tensor."""
    return {f"{label}/{name}": tensor for label, state in states.items() for name, tensor in state.items()}


def unflatten_states(flat: State) -> dict[str, State]:
    """The inverse of `flatten_states`."""
    states: dict[str, State] = {}
    for name, tensor in flat.items():
        label, _, rest = name.partition("/")
        states.setdefault(label, {})[rest] = tensor
    return states


def parse_drift(text: str) -> Drift:
    """The corrections that `text` names, joined by "+"; none where it is empty.

    Raises:
        ConfigError: unknown correction or setting, value out of range, or the same correction twice.
    """
    if not text.strip():
        return Drift()
    corrections = tuple(CORRECTIONS.build(spec) for spec in split_outside_parentheses(text, "+"))
    names = [c.name for c in corrections]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"FP1006 {text!r} names {', '.join(sorted(twice))} twice; once is enough")
    alternating, variates = ([c.name for c in corrections if which(c)] for which in (_is_alternating, _is_exchanged))
    if alternating and variates:
        raise ConfigError(
            f"FP1007 {variates[0]} counts on every tensor to take every local step, and with {alternating[0]} they "
            "take turns; leave one of them out"
        )
    return Drift(corrections)


def _is_alternating(correction: Correction) -> bool:
    return correction.alternates


def _is_exchanged(correction: Correction) -> bool:
    return correction.travels

"""Energy use of clients, round by round: joules, grams of CO2, and battery levels.

A client whose battery does not last for a round drops out of it: no update arrives, and its battery is empty. Batteries
are full before round 1 and are charged between rounds. All of it follows from declared numbers and the lines of
clients.jsonl, which a resumed run reads again.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.communication.round_plan import RoundPlan
from fedpeft.errors import ConfigError
from fedpeft.machine.energy import Meter
from fedpeft.parts import name_of
from fedpeft.reporting.records import Records
from fedpeft.rounds.acceptance import ClientResult
from fedpeft.rounds.hooks import RoundHook
from fedpeft.rounds.progress import ServerState
from fedpeft.rounds.round_log import RoundLog
from fedpeft.wiring.energy import JOULES_PER_WH, EnergyModel, EnergySettings, EnergyUse, add_up
from fedpeft.wiring.profiles import Profile, Profiles
from fedpeft.wiring.sampling import AwareSampler
from fedpeft.wiring.setup import Setup

Floats = NDArray[np.float64]

DROPPED = "its battery does not last for the round"
"""Why a client sends no update."""

MOST_CLIENTS = 100
"""Number of clients, the first ones, whose joules summary.json lists; clients.jsonl has all."""

SECONDS_PER_HOUR = 3600.0

BYTES_PER_NUMBER = 4
"""Bytes of each number of an update and of the model in predictions, which assume no compression."""


@dataclass(frozen=True)
class RoundEnergy:
    """Energy of all clients of a round.

    Attributes:
        spent: their joules.
        grams: grams of CO2; 0: no profile or setting states how clean the power is.
        measured: joules that the server's machine has used meanwhile (in a simulation, for everything); None: not
            measured.
    """

    spent: EnergyUse
    grams: float
    measured: float | None


@dataclass
class EnergyTracker:
    """The energy and batteries of the clients of a run.

    Attributes:
        setup: the run's; its energy measurement sets what profiles leave open. Without one no energy is used, and the
            tracker serves a sampler that depends on losses or example counts.
        losses, rows: as each client last reported them, (clients,); NaN: not yet.
        levels: joules in each battery, (clients,); infinite: plugged in.
    """

    setup: Setup
    losses: Floats = field(init=False)
    rows: Floats = field(init=False)
    levels: Floats = field(init=False)
    _round: int = 0
    _dropped: list[int] = field(default_factory=list)
    _meter: Meter = field(default_factory=Meter)
    _measured: float = 0.0

    @classmethod
    def create(cls, setup: Setup) -> EnergyTracker | None:
        """Return the tracker of a run that measures energy or chooses clients by what is known of them; else None."""
        is_needed = setup.sampler is not None or setup.measured.get(EnergySettings) is not None
        return cls(setup) if is_needed else None

    def __post_init__(self) -> None:
        """Begin with full batteries and unknown losses and example counts."""
        self.model = EnergyModel(self.setup.measured.get(EnergySettings) or EnergySettings())
        self.losses, self.rows = (np.full(self.setup.clients, np.nan) for _ in range(2))
        self.levels = self.capacities.copy()

    # --------------------------------------------------------------------------------------------- what samplers see

    def _collect_from_profiles(self, value: Any) -> Floats:
        """Return a number from each client's profile, (clients,)."""
        profiles: Sequence[Profile] = self.setup.profiles
        groups = profiles.groups if isinstance(profiles, Profiles) else [(profile, 1) for profile in profiles]
        return np.repeat([float(value(p)) for p, _ in groups], [count for _, count in groups])

    @property
    def capacities(self) -> Floats:
        """Joules that each battery holds, (clients,); infinite: plugged in."""
        return self._collect_from_profiles(lambda p: p.battery_wh * JOULES_PER_WH or np.inf)

    @property
    def weights(self) -> Floats:
        """Chances of being drawn, relative to each other, (clients,)."""
        return self._collect_from_profiles(lambda p: p.participation)

    def _count_steps(self, rows: Floats) -> Floats:
        """Return the local steps of each client, (clients,); an unknown example count counts as the mean."""
        known = rows[np.isfinite(rows)]
        guessed = np.where(np.isfinite(rows), rows, known.mean() if len(known) else 1.0)
        sizes, place = np.unique(np.rint(guessed).astype(np.int64), return_inverse=True)
        own = np.array([self.setup.training.steps_for(int(size)) for size in sizes], dtype=float)[place]
        declared = self._collect_from_profiles(lambda p: p.steps)
        whole: Floats = np.where(declared > 0, declared, own)
        if not self.model.given.lean:
            return whole
        plugged = np.isinf(self.capacities)
        charge = np.where(plugged, 1.0, self.levels / np.where(plugged, 1.0, self.capacities))
        return np.maximum(1.0, np.ceil(whole * charge))

    def compute_reduced_work(self, clients: Sequence[int]) -> dict[int, int]:
        """Return the local steps of these clients if they follow the battery; empty: they do not, or none runs on one.

        After LeanFed (arXiv 2412.02289), whose clients leave examples out so that their batteries last for the rounds.
        Here the share of steps is the battery's charge over its capacity.
        """
        if not self.model.given.lean or not np.isfinite(self.capacities).any():
            return {}
        steps = self._count_steps(self.rows)
        return {client: int(steps[client]) for client in clients if np.isfinite(self.capacities[client])}

    @property
    def seconds(self) -> Floats:
        """Predicted seconds of local training, (clients,)."""
        return self._count_steps(self.rows) * self._collect_from_profiles(lambda p: self.model.get_seconds(p, 1))

    @property
    def uses(self) -> Floats:
        """Predicted joules that a round takes from each client's battery, (clients,)."""
        sent = BYTES_PER_NUMBER * self.setup.layout.numel
        traffic = self._collect_from_profiles(lambda p: self.model.predict_joules(p, 0, sent, sent))
        return self.seconds * self._collect_from_profiles(self.model.get_watts) + traffic

    def get_intensity(self, round_number: int) -> Floats:
        """Return the grams of CO2 per kWh at each client's location, (clients,)."""
        return self._collect_from_profiles(lambda p: self.model.get_intensity(p, round_number))

    # ------------------------------------------------------------------------------------------------------- a round

    def replay(self, lines: Iterable[Mapping[str, Any]], rows: Mapping[int, int], round_number: int) -> None:
        """Restore the tracker after `round_number`.

        Args:
            lines: the lines of clients.jsonl so far.
            rows: example counts that clients have reported.
            round_number: the last finished round.

        An asynchronous run receives an update `staleness` rounds after it has asked for it.
        """
        by_round: dict[int, list[Mapping[str, Any]]] = {}
        for line in lines:
            by_round.setdefault(line["round"] + line.get("staleness", 0), []).append(line)
        for number in range(1, round_number + 1):
            self.begin(number, {})
            for line in by_round.get(number, ()):
                joules = sum((line.get("joules") or {}).values())
                self._record_use(line["client"], joules / self.model.given.pue, line.get("loss"), line.get("rejected"))
        self._record_rows(rows)

    def open(self, plan: RoundPlan) -> RoundPlan:
        """Return the round with the clients whose battery lasts; the others drop out."""
        uses = self.uses
        self._dropped = [k for k in plan.cohort if self.levels[k] < uses[k]]
        self._measured = self._meter.measure_joules() or 0.0
        return replace(plan, cohort=[k for k in plan.cohort if k not in set(self._dropped)])

    def begin(self, round_number: int, rows: Mapping[int, int]) -> None:
        """Prepare a round: note the `rows` that clients have reported, which samplers use, and charge batteries."""
        self._record_rows(rows)
        if round_number == self._round + 1 and round_number > 1:
            charge = (
                self._collect_from_profiles(lambda p: p.charge_watts) * self.model.given.round_hours * JOULES_PER_WH
            )
            self.levels = np.minimum(self.capacities, self.levels + charge)
        self._round = round_number

    def account(self, results: list[ClientResult], round_number: int) -> RoundEnergy | None:
        """Return the energy of a round, and add it and dropped clients to `results`; None: it is not measured.

        No client counts more steps than it was asked for, and waiting ends with the next round. Only these numbers of a
        refused report count. Otherwise a liar would empty the batteries of all who wait, or fill its own.
        """
        if self.setup.measured.get(EnergySettings) is None:
            for result in results:
                self._record_use(result.client, 0.0, result.loss, result.rejected)
            return None
        rows = self.rows.copy()
        for result in results:
            if result.rows and result.rejected is None:
                rows[result.client] = result.rows
        asked = self._count_steps(rows)
        steps = {r.client: int(min(asked[r.client], math.inf if r.steps is None else max(0, r.steps))) for r in results}
        seconds = {k: self.model.get_seconds(self.setup.profiles[k], n) for k, n in steps.items()}
        slowest = min(max(seconds.values(), default=0.0), SECONDS_PER_HOUR * self.model.given.round_hours)
        spent: dict[int, EnergyUse] = {}
        for place, result in enumerate(results):
            profile, own = self.setup.profiles[result.client], 0.0 if result.rejected else result.measured or 0.0
            sent_bytes = result.uplink_bytes, result.downlink_bytes
            spent[result.client] = self.model.compute_spent(profile, steps[result.client], slowest, *sent_bytes, own)
            results[place] = replace(result, joules=spent[result.client].to_dict())
            used = spent[result.client].joules / self.model.given.pue
            self._record_use(result.client, used, result.loss, result.rejected)
        for client in self._dropped:
            self._record_use(client, 0.0, None, DROPPED)
            results.append(_create_dropped_result(client, round_number))
        grams = sum(self.model.compute_grams(self.setup.profiles[k], round_number, s.joules) for k, s in spent.items())
        now = self._meter.measure_joules()
        return RoundEnergy(add_up(spent), grams, None if now is None else now - self._measured)

    def _record_rows(self, rows: Mapping[int, int]) -> None:
        if rows:
            self.rows[list(rows)] = list(rows.values())

    def _record_use(self, client: int, joules: float, loss: float | None, rejected: str | None) -> None:
        self.levels[client] = 0.0 if rejected == DROPPED else max(0.0, self.levels[client] - joules)
        if loss is not None and rejected is None:
            self.losses[client] = loss


def _create_dropped_result(client: int, round_number: int) -> ClientResult:
    return ClientResult(
        round=round_number,
        client=client,
        rank=None,
        rows=None,
        steps=0,
        loss=None,
        seconds=0.0,
        uplink_bytes=0,
        downlink_bytes=0,
        downlink_from=None,
        base_precision=None,
        rejected=DROPPED,
    )


class EnergyHook(RoundHook):
    """Charges batteries between rounds, leaves out clients whose battery is too low, and accounts for each round."""

    def __init__(self, book: EnergyTracker, records: Records) -> None:
        """Hold the tracker and the record files."""
        self.book, self.records = book, records
        self.spent: RoundEnergy | None = None

    def open(self, state: ServerState | None) -> None:
        """Restore what clients used before the server was restarted."""
        if state is not None:
            self.book.replay(self.records.read("clients.jsonl"), state.rows, state.round)

    def fingerprint(self) -> str:
        """Return the clients whose battery is too low for a round, and the steps that the others allow."""
        everyone = range(len(self.book.levels))
        low = np.flatnonzero(self.book.levels < self.book.uses).tolist()
        steps = self.book.compute_reduced_work(everyone)
        return f"{low} {steps}" if low or steps else ""

    def before_round(self, state: ServerState) -> ServerState:
        """Charge batteries."""
        self.book.begin(state.round + 1, state.rows)
        return state

    def select(self, plan: RoundPlan, state: ServerState) -> RoundPlan:
        """Leave out clients whose battery does not last, and reduce the work of others."""
        if plan.kind == "prepare":
            return plan
        plan = self.book.open(plan)
        return replace(plan, steps=self.book.compute_reduced_work(plan.cohort))

    def after_step(self, before: ServerState, after: ServerState, log: RoundLog) -> ServerState:
        """Account for the energy that the clients have used, even if the step is undone."""
        self.spent = self.book.account(log.received.results, log.plan.number)
        return after

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Record the energy of a round whose cohort is public."""
        if self.spent is not None and not log.plan.secret:
            log.result = replace(
                log.result,
                joules=self.spent.spent.joules,
                grams=self.spent.grams or None,
                measured_joules=self.spent.measured,
            )


def _add_known(lines: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """Return the sum of a field over the lines that have it; None: no line has."""
    known = [line[name] for line in lines if line.get(name) is not None]
    return sum(known) if known else None


def summarize_energy(
    clients: Iterable[Mapping[str, Any]], rounds: Iterable[Mapping[str, Any]], pue: float
) -> dict[str, Any] | None:
    """Return the energy section of summary.json: joules by kind, grams, and how often clients dropped out.

    `clients` and `rounds` are the lines of clients.jsonl and rounds.jsonl. None: nothing was counted. `measured` is
    what the server's machine measured itself.
    """
    counted = [line for line in clients if line.get("joules") or line.get("rejected") == DROPPED]
    if not counted:
        return None
    joules = dict.fromkeys(("train", "idle", "up", "down"), 0.0)
    each: dict[int, float] = defaultdict(float)
    for line in counted:
        used = line.get("joules") or {}
        each[line["client"]] += sum(used.values())
        for kind in joules:
            joules[kind] += used.get(kind, 0.0)
    told = list(rounds)
    return {
        "joules": sum(joules.values()),
        **joules,
        "grams": _add_known(told, "grams"),
        "measured": _add_known(told, "measured_joules"),
        "pue": pue,
        "dropped": sum(line.get("rejected") == DROPPED for line in counted),
        "clients": {str(client): round(used, 1) for client, used in sorted(each.items())[:MOST_CLIENTS]},
        "rounds": [round(line.get("joules") or 0.0, 1) for line in told if line["round"]],
    }


@dataclass(frozen=True)
class AwarePopulation:
    """A sampler whose cohorts depend on the energy tracker."""

    rule: AwareSampler
    book: EnergyTracker
    size: int

    def draw(self, seed: int, round_number: int) -> list[int]:
        """Return the cohort of a round (from 1), ascending; empty if no battery lasts.

        Raises:
            ConfigError: the sampler, possibly a plugin's, returns an invalid id, one id twice, or more than `size` ids.
        """
        chosen, clients = self.rule.choose(self.book, self.size, seed, round_number), len(self.book.levels)
        if wrong := _describe_invalid_cohort(chosen, clients, self.size):
            raise ConfigError(
                f"FP1405 the sampler {name_of(type(self.rule))} chooses {wrong} in round {round_number}; choose "
                f"at most {self.size} different ids, each a whole number from 0 to {clients - 1}"
            )
        return sorted(map(int, chosen))


def _describe_invalid_cohort(chosen: Sequence[int], clients: int, size: int) -> str:
    """Return why a choice is not a cohort of at most `size` out of `clients` clients; empty: it is one."""
    strange = [k for k in chosen if isinstance(k, bool) or not (isinstance(k, Integral) and 0 <= k < clients)]
    if strange:
        return f"ids that no client has, {strange[:5]!s:.80},"
    if twice := [int(k) for k, times in Counter(chosen).items() if times > 1]:
        return f"clients more than once, {twice[:5]},"
    return f"{len(chosen)} clients" if len(chosen) > size else ""

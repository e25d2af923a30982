"""Attacks of `fedpeft attack`, with the expected result of each."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fedpeft.attack import hostile_clients, in_sums, unequal_instructions
from fedpeft.attack.outcome import Outcome
from fedpeft.attack.stage import SECONDS, AttackStage
from fedpeft.deployment.options import ServeOptions
from fedpeft.parts.spec import add_settings
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.secure_sum.cohorts import FEWEST
from fedpeft.privacy.secure_sum.sum import parse_privacy, sums_in
from fedpeft.wiring.config import RunConfig

Aim = Literal["an update", "the rounds"]

SERVER, CLIENT, NOBODY, NOISE = "server", "one client", "nobody", "the noise"


@dataclass(frozen=True)
class Attack:
    """One attack of the suite.

    Attributes:
        run: function that attacks a stage; its docstring describes the attack.
        controls: what the attacker controls.
        aim: the attacker's goal: to read one client's update, or to stop or spoil the rounds.
        clients: number of participating clients.
        rounds: number of training rounds.
        sums: whether it attacks secure sums.
        stopped_by: what stops it if no party refuses anything; empty: refusals.
        limit: the documented reason why nothing prevents it; empty: it is prevented.
    """

    run: Callable[[AttackStage], Outcome]
    controls: str = SERVER
    aim: Aim = "an update"
    clients: int = 5
    rounds: int = 1
    sums: bool = True
    stopped_by: str = ""
    limit: str = ""

    @property
    def name(self) -> str:
        """Name of the attack."""
        return self.run.__name__.replace("_", " ")

    @property
    def about(self) -> str:
        """Action of the attacker, in one sentence."""
        return (self.run.__doc__ or "").splitlines()[0]


def _create_client_attack(run: Callable[[AttackStage], Outcome], **more: object) -> Attack:
    return dataclasses.replace(Attack(run, CLIENT, "the rounds", rounds=2), **more)  # type: ignore[arg-type]


ATTACKS: Final = (
    Attack(in_sums.reading_along, sums=False, stopped_by="the masks"),
    Attack(unequal_instructions.other_model, sums=False),
    Attack(unequal_instructions.other_alpha),
    Attack(unequal_instructions.no_rank),
    Attack(unequal_instructions.no_digest),
    Attack(unequal_instructions.one_step),
    Attack(unequal_instructions.no_rate),
    Attack(unequal_instructions.two_records),
    Attack(in_sums.as_many_as_tolerated, "server, 1 of 5 clients", clients=7, stopped_by="too few shares"),
    Attack(in_sums.one_more, "server, 2 of 5 clients", clients=7,
           limit="one colluding client more than a sum tolerates (docs/privacy-attacks.md)"),
    Attack(in_sums.invented_clients, "server, the authority's key"),
    Attack(in_sums.expired_certificate, "server, expired keys"),
    Attack(in_sums.sum_of_one),
    Attack(in_sums.alone_in_a_cohort, "server, 1 of 5 clients"),
    Attack(in_sums.low_order_keys),
    Attack(in_sums.survivors_twice),
    Attack(in_sums.vector_twice),
    Attack(in_sums.old_task, rounds=2),
    Attack(in_sums.second_sum),
    Attack(in_sums.restart_server),
    Attack(in_sums.void_round, rounds=2,
           limit="sums of two rounds can be subtracted; give --fewest, or distributed_dp"),
    _create_client_attack(hostile_clients.lying_norm, stopped_by="the server: it bounds the norm"),
    _create_client_attack(hostile_clients.lying_weight),
    _create_client_attack(hostile_clients.overflowing_sum),
    _create_client_attack(hostile_clients.not_a_number, stopped_by="its own software"),
    _create_client_attack(hostile_clients.false_shares),
    _create_client_attack(hostile_clients.low_order_keys),
    _create_client_attack(hostile_clients.leaves, stopped_by="the others: their shares suffice"),
    _create_client_attack(hostile_clients.garbage, sums=False),
    _create_client_attack(hostile_clients.garbage_for_shares,
                          limit="garbage for shares voids the sums of its neighbors"),
)  # fmt: skip
"""All attacks, in the order in which they run."""


@dataclass(frozen=True)
class Result:
    """Judged result of one attack.

    Attributes:
        attack: the attack.
        outcome: what happened.
        learned: what the attacker learned.
        refused: who refused, and why.
        verdict: one or two words.
        holds: whether the documented claim holds.
        decided: whether the attack ended; if not, the claim is neither confirmed nor refuted.
    """

    attack: Attack
    outcome: Outcome
    learned: str
    refused: str
    verdict: str
    holds: bool
    decided: bool = True


def attack_settings(
    config: RunConfig, options: ServeOptions, fewest: int = FEWEST, attacks: Sequence[Attack] = ATTACKS
) -> Iterator[Result]:
    """Attack a server's settings, and yield one result after another.

    Args:
        config: the server's settings; dataset, model and number of clients are replaced by small ones.
        options: the server's options.
        fewest: fewest clients of a sum that a client joins.
        attacks: the attacks to run; those on secure sums are skipped if the settings use none.

    Raises:
        FedpeftError: the settings can't be served.
    """
    summed = sums_in(config.privacy) is not None
    for attack in attacks:
        if summed or not attack.sums:
            with tempfile.TemporaryDirectory(prefix="fedpeft-attack-") as folder:
                stage = AttackStage(Path(folder), reduce_settings(config, attack), reduce_options(options), fewest)
                yield judge(attack, attack.run(stage), config)


def reduce_settings(config: RunConfig, attack: Attack) -> RunConfig:
    """Return a server's settings with a small dataset and model, and the number of clients of an attack."""
    return dataclasses.replace(
        config,
        privacy=_leave_budget(config.privacy),
        dataset="tiny",
        model="auto",
        tokens=32,
        partition="auto",
        attack="",
        clients=attack.clients,
        cohort="all",
        ranks="",
        rounds=attack.rounds,
        grid="cohort",
        workers=1,
        measure="validation(every=100)",
    )


def _leave_budget(privacy: str) -> str:
    """Return the mechanism with half of its budget for training, if it leaves the share to a formula.

    The clients of an attack have few examples, so the formula would leave them no round to attack.
    """
    mechanism = parse_privacy(privacy) if privacy and sums_in(privacy) is None else None
    if not isinstance(mechanism, Mechanism) or mechanism.epsilon is None or mechanism.start is not None:
        return privacy
    return add_settings(privacy, start=0.5)


def reduce_options(options: ServeOptions) -> ServeOptions:
    """Return the server's options that do not depend on its data and addresses."""
    kept = ("held_out", "most_rows", "most_weight")
    return ServeOptions(**{name: getattr(options, name) for name in kept})


def judge(attack: Attack, outcome: Outcome, config: RunConfig) -> Result:
    """Return the judged result of an attack."""
    secure = sums_in(config.privacy)
    summed = secure is not None
    prevented, learned = assess_aim(attack, outcome, config)
    refused, limit = _describe_refusal(attack, outcome), attack.limit
    if not summed and attack.run is in_sums.reading_along:
        limit = "the settings allow it"
    elif prevented and secure is not None and secure.noisy:
        refused, limit = (NOISE if refused == NOBODY else refused), ""
    else:
        limit = limit or _find_limit(outcome, summed)
    if outcome.timed_out and not outcome.victims:
        verdict = f"undecided: no end within {SECONDS:g} s; run it again on a free machine"
        return Result(attack, outcome, "nothing so far", refused, verdict, holds=False, decided=False)
    if limit and not (prevented and outcome.refusals):
        verdict, holds = f"not prevented: {limit}", True
    elif not prevented:
        verdict, holds = "BROKEN", False
    elif refused == NOBODY:
        verdict, holds = "NO OUTCOME", False
    else:
        verdict, holds = "held", True
    return Result(attack, outcome, learned, refused, verdict, holds)


def _find_limit(outcome: Outcome, summed: bool) -> str:
    """Return the documented reason why nothing prevents an attack, from what the server printed; empty: none."""
    lines = outcome.lines
    if "FP5252" in outcome.refusals.get("server", ""):
        return "one failing client voids the sum before round 1, which this plan needs; allow for dropouts"
    if any("too little noise" in line for line in lines):
        return "one failing client voids a sum that needs the noise of all; allow for dropouts"
    if not (summed or outcome.reports or outcome.rounds[0]) and any("budget is spent" in line for line in lines):
        return "no round trains, because the start has the whole budget"
    return ""


def assess_aim(attack: Attack, outcome: Outcome, config: RunConfig) -> tuple[bool, str]:
    """Return whether the attacker missed its aim, and what it learned."""
    alike = max(outcome.read.values(), default=0.0)
    if attack.aim == "the rounds":
        ended, moved = outcome.rounds
        return ended == attack.rounds == moved, f"nothing; {moved} of {attack.rounds} rounds moved the model"
    if sums_in(config.privacy) is None:
        if outcome.refusals:
            return True, "nothing: the clients do not train"
        return False, _describe_clear(config)
    if outcome.victims:
        return False, f"the update of {', '.join(outcome.victims)} (correlation {alike:.4f})"
    if outcome.sums:
        return True, f"sums of updates (correlation with one client's at most {alike:.2f})"
    return True, "nothing: there is no sum"


def _describe_clear(config: RunConfig) -> str:
    if not config.privacy:
        return "each client's update"
    mechanism = parse_privacy(config.privacy)
    noisy = isinstance(mechanism, Mechanism) and mechanism.protects and mechanism.noises_updates
    return "each client's update, with its noise" if noisy else "each client's update"


def _describe_refusal(attack: Attack, outcome: Outcome) -> str:
    clients = {name: why for name, why in outcome.refusals.items() if name != "server"}
    if attack.aim == "an update" and clients:
        first = clients.get("edge-0") or next(iter(clients.values()))
        others = [why for why in clients.values() if why != first]
        return f"{len(clients)} of {attack.clients} clients: {max([first, *others], key=list(clients.values()).count)}"
    told = [outcome.refusals["server"]] if "server" in outcome.refusals else outcome.lines
    if attack.aim == "the rounds" and told:
        return f"server: {told[0]}"
    return attack.stopped_by or NOBODY

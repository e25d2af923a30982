"""What each client of a round receives: its instruction, and the state that it starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from fedpeft.aggregation.grouped_rules import GroupedStrategy
from fedpeft.communication.broadcast_digests import BroadcastDigests, compute_common_digest, compute_digest
from fedpeft.communication.downlink import Downlink, Package, SentState
from fedpeft.communication.messages import Instruction, Kind
from fedpeft.communication.precision_rule import Situation
from fedpeft.communication.round_plan import RoundPlan
from fedpeft.machine import seeds
from fedpeft.peft.adapter import AdapterShape, State
from fedpeft.rounds.traffic import Traffic

if TYPE_CHECKING:
    from fedpeft.rounds.progress import ServerState
    from fedpeft.wiring.setup import Setup

NO_STEPS: Mapping[int, int] = MappingProxyType({})


class Broadcast:
    """What the server sends in a round.

    Args:
        setup: the parts of the run.
        progress: the server state before the round.
        remote: whether clients are on other machines, which then receive what goes into the base.
        steps: local steps of some clients, in place of those in their profiles.
    """

    def __init__(self, setup: Setup, progress: ServerState, remote: bool, steps: Mapping[int, int] = NO_STEPS) -> None:
        """Encode what all clients receive alike."""
        self.setup, self.progress, self.remote, self.steps = setup, progress, remote, steps
        lossless = setup.lossless
        self.downlink = self._create_downlink(progress.adapter)
        self._of_groups: dict[str, Downlink] = {}
        shared = self.downlink.shared
        states = {label: {name: state[name] for name in shared} for label, state in progress.drift.items()}
        self.correction = setup.drift.encode(states, lossless)
        self.told = lossless.encode(progress.told) if progress.told else b""

    def _create_downlink(self, state: State) -> Downlink:
        """Return the downlink of the global state, or of a group's state."""
        setup, progress = self.setup, self.progress
        return Downlink(
            setup.strategy,
            setup.layout,
            setup.downlink,
            setup.lossless,
            state,
            setup.start,
            progress.versions,
            progress.residual,
            progress.round + 1,
            setup.config.seed,
        )

    def create_sent_states(self, plan: RoundPlan) -> list[SentState]:
        """Return what each client of a round receives."""
        bits = self.setup.uplink.compute_bits(self._build_situation(plan.cohort))
        if plan.bits_share < 1:
            bits = {k: plan.bits_share * bits.get(k, self.setup.uplink.codec.bits) for k in plan.cohort}
        found = []
        for client in plan.cohort:
            asked = self.create_instruction("train", client, plan.number, bits.get(client, 0.0), plan.attempt)
            base = self.downlink.base(asked.acknowledged)
            package = self._create_package(client)
            found.append(SentState(asked, package, len(base)))
        return found

    def create_instruction(
        self, kind: Kind, client: int, round_number: int, bits: float = 0.0, attempt: int = 0
    ) -> Instruction:
        """Return a client's instruction; the arguments are fields of `Instruction`."""
        down, profile = self.downlink, self.setup.profiles[client]
        form, last = self.form(client), self.progress.acknowledged.get(client, 0)
        return Instruction(
            kind=kind,
            round=round_number,
            client=client,
            payload=self._create_package(client).payload,
            rank=form.rank if form else 0,
            alpha=form.alpha if form else 0.0,
            acknowledged=last,
            steps=self.steps.get(client, profile.steps),
            base_precision=profile.base,
            adapter_precision=profile.adapter,
            bits=bits,
            residual=down.base(last) if self.remote else b"",
            attempt=attempt,
            task=self._number_task(client, round_number) if kind == "train" else 0,
            **self._build_common_fields(kind, round_number),
        )

    def _number_task(self, client: int, round_number: int) -> int:
        """Return the task that a client trains on in a round, from 1; 0: there is one task."""
        tasks = self.setup.facts.tasks
        return 0 if tasks is None else 1 + tasks.schedule.get_client_task(client, round_number, self.setup.config.seed)

    def _build_common_fields(self, kind: Kind, round_number: int) -> dict[str, Any]:
        """Return the fields that are the same for all clients of a round."""
        down = self.downlink
        return {
            "learning_rate": self.get_learning_rate(round_number),
            "trained": () if len(down.trained) == len(self.setup.layout.names) else self._find_positions(down.trained),
            "private": self._find_positions(down.private),
            "base": self.progress.residual.version,
            "correction": self.correction,
            "told": self.told if kind == "train" else b"",
        }

    def create_digests(self, kind: Kind, round_number: int, asks: str = "") -> BroadcastDigests:
        """Return what all clients of a round receive alike, with the state of each adapter shape that a client has.

        States of groups are not compared: a client does not learn which others are in its group.
        """
        forms = {self.form(client) for client in range(self.setup.clients)}
        base = self.progress.residual.total
        return BroadcastDigests(
            kind=kind,
            round=round_number,
            states={name: digest for form in forms for name, digest in self.downlink.get_digests(form).items()},
            common=compute_common_digest(
                Instruction(kind, round_number, 0, b"", asks=asks, **self._build_common_fields(kind, round_number))
            ),
            base=compute_digest(base) if base else "",
            asks=asks,
        )

    def get_learning_rate(self, round_number: int) -> float:
        """Return the clients' learning rate in a round."""
        rate: float = self.setup.schedule.get_rate(round_number) * self.progress.standing.rate
        return rate

    def form(self, client: int) -> AdapterShape | None:
        """Return the current LoRA rank and alpha of a client."""
        return self.progress.forms.get(client, self.setup.profiles[client].form)

    def _create_package(self, client: int) -> Package:
        held, newcomer = self.progress.held.get(client, 0), not self.progress.acknowledged.get(client, 0)
        return self._get_client_downlink(client).create_package(self.form(client), held, newcomer, client)

    def _get_client_downlink(self, client: int) -> Downlink:
        """Return the downlink of the state that a client receives."""
        rule, progress = self.setup.strategy, self.progress
        if not isinstance(rule, GroupedStrategy):
            return self.downlink
        group = rule.find_group(client, progress.learned)
        if group not in self._of_groups:
            state = rule.get_group_state(group, progress.adapter, progress.learned, self.setup.layout)
            self._of_groups[group] = self._create_downlink(state)
        return self._of_groups[group]

    def _find_positions(self, names: frozenset[str]) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(self.setup.layout.names) if name in names)

    def _build_situation(self, cohort: Sequence[int]) -> Situation:
        """Return what precision rules depend on; clients with an unknown number of examples count as average ones."""
        rows, weights = self.progress.rows, dict.fromkeys(cohort, 1.0)
        if self.setup.by_rows:
            known = all(client in rows for client in cohort) or not rows
            average = 1.0 if known else sum(rows.values()) / len(rows)
            weights = {client: float(rows.get(client, average)) for client in cohort}
        return Situation(
            losses=self.progress.losses,
            weights=weights,
            speeds={k: self.setup.profiles[k].link for k in cohort},
        )

    def estimate_traffic(self, cohort: int, bits_share: float = 1.0) -> Traffic:
        """Return the traffic of the expected number of clients, whichever clients take part.

        An update is as long as one of random numbers, which for most codecs is exact.

        Args:
            cohort: expected number of clients.
            bits_share: as in `RoundPlan`.
        """
        bits = 0.0 if bits_share == 1 else bits_share * self.setup.uplink.codec.bits
        setup, down = self.setup, self.downlink
        uplink_bytes = downlink_bytes = base_bytes = parameters = 0
        for form, count in Counter(profile.form for profile in setup.profiles).items():
            layout, expected = setup.layout.replace_form(form), cohort / setup.clients * count
            draws = seeds.create_torch_generator(setup.config.seed, "bytes of an update")
            update = {name: torch.randn(layout.shapes[name], generator=draws) for name in sorted(down.shared)}
            update = {name: tensor.to(self.progress.adapter[name].dtype) for name, tensor in update.items()}
            payload, _ = setup.uplink.remove_memory().encode(
                update, {}, bits=bits, seed=setup.config.seed, trained=update, layout=layout
            )
            base, sent = len(down.base(0)), down.create_package(form, 0, newcomer=False).payload
            uplink_bytes += round(expected * len(payload))
            downlink_bytes += round(expected * (len(sent) + base + len(self.correction) + len(self.told)))
            base_bytes += round(expected * base)
            parameters += round(expected * layout.numel)
        return Traffic(uplink_bytes, downlink_bytes, base_bytes, parameters)

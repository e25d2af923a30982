"""The settings of a run that a client takes from a server: an allow-list.

A client reads its server's settings as the text of a configuration. It takes those that change what a client computes
(`TAKEN`), within limits. Those that concern only the server or the client itself (`LEFT`) keep their defaults here,
whatever the text contains: no dataset that it names is loaded. Those that make sense in simulations only (`REFUSED`)
come from no honest server, and a text that sets them is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import tomli_w

from fedpeft.aggregation.task_rules import TaskRanks
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import FedpeftError, RunError
from fedpeft.parts import Family, format_part
from fedpeft.parts.families import (
    CORRECTIONS,
    LOCAL_OPTIMIZERS,
    LOCAL_WORK,
    MECHANISMS,
    PEFT_METHODS,
    SERVER_NOISES,
    SUMS,
)
from fedpeft.parts.spec import parse_spec, split_outside_parentheses
from fedpeft.peft.abilities import NamesRuns
from fedpeft.peft.family import resize_method
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.secure_sum.sum import SecureSum, parse_privacy, sums_under
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.wiring.config import RunConfig, build_config
from fedpeft.wiring.measurements import Measurements, parse_measure
from fedpeft.wiring.profiles import list_distinct
from fedpeft.wiring.sampling import compute_cohort_size
from fedpeft.wiring.setup import Setup

TAKEN: Final = frozenset(
    {
        "clients", "rounds", "cohort",  # how often a client will be asked, for its privacy
        "model", "tokens", "peft", "dtype", "head", "strategy",
        "batch_size", "local_work", "learning_rate", "optimizer", "drift",
        "privacy", "codec", "downlink", "seed",
    }
)  # fmt: skip
"""Settings that a client takes from the server."""

LEFT: Final = frozenset(
    {"dataset", "partition", "server_optimizer", "workers", "safeguard", "measure", "hook", "budget_megabytes"}
)
"""Settings without effect on a client, which keep their defaults. What a round needs of them is in its instruction."""

REFUSED: Final = frozenset({"ranks", "attack", "grid"})
"""Settings for simulations only, as are measurements that need their examples; refused unless at their defaults."""

KNOWN: Final[Mapping[str, Family[Any]]] = {
    "local_work": LOCAL_WORK,
    "optimizer": LOCAL_OPTIMIZERS,
    "drift": CORRECTIONS,
}
"""Settings that name parts of these families. Only loaded parts count; no package is loaded for them."""

AT_MOST: Final = {
    "clients": 1_000_000,
    "rounds": 1_000_000,
    "batch_size": 1_000_000,
    "seed": 2**63 - 1,
}
"""The largest values that a client takes; the other numbers have their own limits (`RunConfig`)."""


def select_client_settings(setup: Setup) -> RunConfig:
    """Return the settings that a server sends its clients, with model and PEFT method as they turned out here."""
    told = {name: getattr(setup.config, name) for name in TAKEN}
    if setup.config.cohort == "auto":  # a client's ledger needs the number, whatever rule its version has
        told["cohort"] = compute_cohort_size("auto", setup.clients)
    return RunConfig(**told | {"clients": setup.clients, "model": setup.model_name, "peft": _get_client_method(setup)})


def _get_client_method(setup: Setup) -> str:
    """Return the text of the PEFT method for clients.

    A method with ranks for each task has those of one. One that reads finished runs names their digests.
    """
    if isinstance(setup.method, NamesRuns):
        return format_part(setup.method.name_by_digests())
    if not isinstance(setup.strategy, TaskRanks):
        return setup.peft
    given = setup.config.peft
    return resize_method(given, PEFT_METHODS.build(given), [profile.form for profile in list_distinct(setup.profiles)])


def format_client_settings(config: RunConfig) -> str:
    """Return `TAKEN` as TOML, for clients.

    An earlier client refuses a setting that it does not have. So a setting that joins `TAKEN` after version 0.3.0 is
    written only if it differs from its default.
    """
    return tomli_w.dumps({name: getattr(config, name) for name in sorted(TAKEN)})


def parse_shared_settings(text: str) -> RunConfig:
    """Return the settings that a client shares with its server, from the server's `text` (TOML); others are defaults.

    Raises:
        RunError: the text can't be read by this version, or asks for what a client does not do.
        PrivacyError: it asks for secure sums that a lying server could see through, or that lack a number of examples.
    """
    shared = _SharedSettings.parse(text)
    shared.check()
    return RunConfig(**{name: getattr(shared.config, name) for name in TAKEN})


@dataclass(frozen=True)
class _SharedSettings:
    """A server's settings, all of whose parts this version has.

    Attributes:
        config: the settings as numbers and texts.
        private: the privacy mechanism or the secure sum; None: no protection.
        secure: the secure sum, or that of the mechanism; None: the server sees each update.
        measured: the measurements.
    """

    config: RunConfig
    private: Mechanism | SecureSum | None
    secure: SecureSum | None
    measured: Measurements

    @classmethod
    def parse(cls, text: str) -> _SharedSettings:
        """Return the settings in `text` (TOML); `check` decides whether a client takes them.

        Raises:
            RunError: this version can't read the text, or lacks a part that it names.
        """
        try:
            told = build_config(tomllib.loads(text), "the server's settings")
            if told.drift == "auto":  # by then the server has chosen what its clients need
                told = dataclasses.replace(told, drift="")
            private = None
            if told.privacy:
                _check_known(told.privacy)
                private = parse_privacy(told.privacy)
            secure, measured = sums_under(private), parse_measure(told.measure)
            for name, family in KNOWN.items():
                for part in filter(None, split_outside_parentheses(getattr(told, name), "+")):
                    family.load_part(parse_spec(part).name)
                    family.build(part)
            method = None if told.peft == "auto" else PEFT_METHODS.build(told.peft)
            known = isinstance(method, NamesRuns) and method.names_digests()  # a server names no folder of a client
            if method is not None and method.own_machine and not known:
                raise RunError(f"FP5093 peft={told.peft!r:.80} {method.own_machine}")
        except (ValueError, RecursionError, FedpeftError) as error:  # ValueError: no TOML, or a number of 5000 digits
            raise RunError(f"FP5094 the server's settings can't be used: {error}") from None
        return cls(told, private, secure, measured)

    def check(self) -> None:
        """Refuse settings that a client does not take.

        Raises:
            RunError: a setting belongs to simulations, or a number is too large.
            PrivacyError: a server that lies could see through the secure sum, or it lacks a number of examples.
        """
        told = self.config
        if isinstance(told.cohort, str) and told.cohort not in ("auto", "all"):
            raise RunError("FP5095 the server's settings name a sampler as its cohort, which belongs to simulations")
        if isinstance(told.clients, str):
            raise RunError("FP5096 the server's settings name a file of clients, and a client needs their number")
        defaults = RunConfig()
        for name in (*sorted(REFUSED), *(["measure"] if self.measured.simulation_only else [])):
            value = getattr(told, name)
            if value != getattr(defaults, name):
                raise RunError(
                    f"FP5097 the server's settings set {name}={value!r:.80}, which belongs to simulations: a client "
                    "with its own examples does not do it; ask whoever runs the server to leave it out"
                )
        for name, most in AT_MOST.items():
            if (value := getattr(told, name)) > most:
                raise RunError(
                    f"FP5098 the server's settings set {name}={value!r:.80}, but a client accepts {most} at most"
                )
        if self.secure is not None:
            self.secure.check_lies()
        if isinstance(self.private, Mechanism) and (self.private.audit or not self.private.protects):
            raise RunError(
                f"FP5099 the server's settings set privacy={told.privacy!r:.80}, which belongs to simulations; ask "
                "whoever runs the server for dp_sgd, local_dp, user_dp, distributed_dp or secure_sum"
            )
        if isinstance(self.private, SumMechanism):
            self.private.check_remote()


def _check_known(privacy: str) -> None:
    """Refuse a mechanism, or its noise, that a package would have to be loaded for.

    Raises:
        ConfigError: names the part, or the text is not a mechanism.
    """
    spec = parse_spec(privacy)
    (SUMS if spec.name in SUMS.names else MECHANISMS).load_part(spec.name)
    if isinstance(noise := spec.settings.get("noise"), str):
        SERVER_NOISES.load_part(parse_spec(noise).name)


def compute_settings_digest(told: v2.Description) -> str:
    """Return the digest of the server's description of the federation, without the version of its software."""
    fields = {name.name: getattr(told, name.name) for name in told.DESCRIPTOR.fields if name.name != "software"}
    fields["labels"] = list(told.labels)
    fields["parts"] = list(told.parts)
    for name in ("parts", "side", "template", "tasks", "frames"):
        if not fields[name]:  # empty, as from an earlier version: transcripts stay comparable
            del fields[name]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

"""Which measurements a run can have, and which samplers: what has no answer, or would be unprotected, is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.aggregation.strategy import GatherStrategy
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.parts import name_of
from fedpeft.run.asked import asks_clients
from fedpeft.run.examined import check_evaluate
from fedpeft.run.profiles import kinds
from fedpeft.run.sampling import aware

if TYPE_CHECKING:
    from fedpeft.run.setup import Setup


def check_measured(setup: Setup) -> None:
    """Refuse what can't be measured here, or must not.

    Raises:
        ConfigError, PrivacyError: says what, and what to do.
    """
    _check_questions(setup)
    _check_energy(setup)


def _check_questions(setup: Setup) -> None:
    """Refuse questions that have no answer here, or whose answers would not be protected."""
    if setup.measured.calibration is not None and setup.facts.task != "classification":
        raise ConfigError(
            f"FP1311 calibration is that of classes, and {setup.facts.task.partition('(')[0]} has none; leave it out "
            "of --measure"
        )
    if setup.measured.alone is not None and (setup.mechanism is not None or setup.secure_sum is not None):
        raise PrivacyError(
            "FP7092 clients that train alone would leave adapters in the run's folder that nothing protects; leave "
            "alone out of --measure"
        )
    if setup.measured.alone is not None and setup.facts.tasks is not None:
        raise ConfigError(
            "FP1312 alone has all of a client's rows at once, and here are tasks; leave it out of --measure"
        )
    for name in ("robustness", "ensemble"):
        if getattr(setup.measured, name) is not None and setup.facts.task != "classification":
            raise ConfigError(f"FP1313 {name} is that of classes; leave it out of --measure")
    if setup.measured.clones is not None and not (setup.task.compares and setup.facts.kind == "text"):
        raise ConfigError(
            "FP1314 clones are found as documents are, by --dataset code_search; leave them out of --measure"
        )
    if setup.measured.second and setup.task.compares:
        raise ConfigError(
            "FP1315 forgetting asks for classes, or for next tokens, and pairs have neither; leave it out"
        )
    if setup.measured.ensemble is not None and isinstance(setup.strategy, GatherStrategy) and setup.strategy.fills_base:
        raise ConfigError(
            f"FP1316 {setup.config.strategy} puts part of what was learned into the base, which an ensemble's states "
            "share; take flexlora"
        )
    if setup.measured.evaluate is not None:
        check_evaluate(setup, setup.measured.evaluate)
    if setup.measured.laplace is not None:
        _check_laplace(setup)
    if not asks_clients(setup):
        return
    if setup.secure_sum is not None and setup.secure_sum.noisy:
        raise PrivacyError(
            f"FP7093 calibration of clients' rows adds up what they measure, which the noise of {setup.config.privacy} "
            "does not cover; take calibration(rows=server) and validation(public=True), or leave it out of --measure"
        )
    if setup.mechanism is not None and setup.mechanism.silent:
        raise PrivacyError(
            "FP7094 calibration of clients' rows adds up what they measure on them, which epsilon does not cover; take "
            "calibration(rows=server), and validation(public=True) where these rows are public, or allow it with "
            f"{setup.mechanism.name}(raw_metrics=True, ...)"
        )


def _check_laplace(setup: Setup) -> None:
    """Refuse what has no Kronecker factors of LoRA matrices, or would tell them unprotected."""
    if setup.facts.task != "classification" or setup.facts.kind != "text" or not _has_kronecker_factors(setup):
        raise ConfigError(
            "FP1317 laplace is of LoRA matrices in a classifier of texts: take --peft lora, or leave it out"
        )
    if len({profile.form for profile in kinds(setup.profiles)}) > 1:
        raise ConfigError("FP1318 laplace adds up factors of one size; give all clients the same rank and alpha")
    if isinstance(setup.strategy, GatherStrategy) and setup.strategy.fills_base:
        raise ConfigError(f"FP1319 {setup.config.strategy} puts part of what was learned into the base; take flexlora")
    if setup.mechanism is not None or setup.secure_sum is not None:
        raise PrivacyError(
            "FP7095 laplace adds up products of what clients' rows make of the model, which --privacy does not cover; "
            "leave one of them out"
        )


def _has_kronecker_factors(setup: Setup) -> bool:
    """Return whether all of the adapter is LoRA matrices that inputs and output gradients of their layers describe."""
    adapter = [tensor for tensor in setup.layout.tensors if tensor.role != "head"]
    only_matrices = bool(adapter) and all(tensor.role in ("lora_A", "lora_B") for tensor in adapter)
    return only_matrices and setup.method.privacy == "hooks" and not setup.method.base_precision


def _check_energy(setup: Setup) -> None:
    """Refuse samplers that would choose by what nobody knows, or that privacy can't be accounted for."""
    rule, energy, profiles = aware(setup.config.cohort), setup.measured.energy, kinds(setup.profiles)
    name = name_of(type(rule)) if rule is not None else ""
    if energy is not None and not energy.watts and not all(profile.watts_train for profile in profiles):
        raise ConfigError(
            "FP1320 energy does not know what clients use: say energy(watts=...), or watts_train in every table of "
            "--clients"
        )
    by_energy = rule is not None and rule.needs_energy
    if energy is None and (by_energy or any(profile.battery_wh for profile in profiles)):
        what = f"the sampler {name}" if by_energy else "a client's battery"
        raise ConfigError(f"FP1321 {what} goes by the energy of clients: add energy(watts=...) to --measure")
    if rule is not None and (setup.mechanism is not None or setup.secure_sum is not None):
        raise PrivacyError(
            f"FP7096 {name} chooses clients by what is known of them, and privacy counts on clients that are drawn "
            "alike; give --cohort a number or a fraction"
        )
    if energy is not None and energy.lean and setup.mechanism is not None:
        raise PrivacyError(
            "FP7097 energy(lean=True) changes how many local steps clients take, which epsilon counts; leave lean out"
        )
    if setup.secure_sum is not None and setup.secure_sum.noisy and any(p.battery_wh for p in profiles):
        raise PrivacyError(
            "FP7098 who drops out for its battery would take its share of the noise along; leave battery_wh out of "
            "--clients"
        )

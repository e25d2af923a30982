"""Settings of a run that a simulation may take and a server of real clients refuses."""

from __future__ import annotations

import dataclasses
import math

from fedpeft.aggregation.abilities import AsksClients
from fedpeft.communication.broadcast_digests import UNCOMPARED
from fedpeft.communication.downlink import explain_uncompared
from fedpeft.data.datasets.clients import LANGUAGE
from fedpeft.data.image_companions import TASKS as COMPANIONS
from fedpeft.data.images_with_texts import PATCH_LABELS
from fedpeft.data.tagged_records import TASK as TOKEN_LABELS
from fedpeft.data.task_sequence import TaskSequence
from fedpeft.deployment.options import ServeOptions
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.models.tasks.regression import Regression
from fedpeft.parts import format_part
from fedpeft.parts.families import TASKS
from fedpeft.parts.spec import parse_spec
from fedpeft.peft.abilities import NamesRuns
from fedpeft.privacy.sum_mechanism import SumMechanism
from fedpeft.wiring.energy import EnergySettings
from fedpeft.wiring.profiles import Profiles
from fedpeft.wiring.run_spec import RunSpec
from fedpeft.wiring.setup import Setup


def check(spec: RunSpec, options: ServeOptions) -> None:
    """Refuse settings that make no sense with real clients.

    Raises:
        ConfigError, PrivacyError: names the setting, and a remedy.
    """
    config = spec.config
    if spec.attack is not None:
        raise ConfigError("FP1128 attack belongs to simulations: real clients keep their examples; leave it out")
    for name in spec.measured.simulation_only:
        raise ConfigError(
            f"FP1129 {name} belongs to simulations: real clients keep their examples; leave it out of --measure"
        )
    if spec.measured.validation.score_last:
        raise ConfigError(
            "FP1529 a server scores only the state that it keeps; leave score_last out of --measure validation(...)"
        )
    if spec.sampler is not None:
        raise ConfigError(
            f"FP1130 --cohort {config.cohort} depends on batteries and power grids that a simulation declares and real "
            "clients don't report; give a number or a fraction"
        )
    if isinstance(spec.strategy, AsksClients):
        raise ConfigError(
            f"FP1131 {config.strategy} asks clients for sums over the examples that they train on, which real "
            "clients don't answer; use fedit or rolora"
        )
    if config.grid != "cohort":
        raise ConfigError("FP1132 grid sets where simulated clients run, and these are real; leave it out")
    if spec.method is not None and (needs := spec.method.own_machine) and not isinstance(spec.method, NamesRuns):
        raise ConfigError(
            f"FP1133 --peft {config.peft} {needs}, and real clients run on other machines; use bottleneck"
        )
    check_privacy(spec, options)


def check_privacy(spec: RunSpec, options: ServeOptions) -> None:
    """Refuse a mechanism or a secure sum that does not protect real clients.

    Raises:
        ConfigError, PrivacyError: names the setting, and a remedy.
    """
    mechanism = spec.mechanism
    if spec.secure_sum is not None:
        spec.secure_sum.check_lies()
        if options.held_out:
            raise PrivacyError(
                "FP7021 --held-out has each client report losses on its own examples, one by one, which no sum hides; "
                "leave it out, or evaluate on the server's examples, with --eval-data"
            )
    if mechanism is None:
        return
    if isinstance(mechanism, SumMechanism):
        mechanism.check_remote()
    if not mechanism.protects:
        raise ConfigError(
            f"FP1134 --privacy {mechanism.name} protects nobody: it is the reference of studies in simulations; "
            "leave it out, or use dp_sgd, local_dp or user_dp"
        )
    if mechanism.audit:
        raise ConfigError(
            "FP1135 audit=True attacks the examples of a simulation, and real clients keep theirs; leave it out"
        )
    if options.held_out and mechanism.silent:
        raise PrivacyError(
            "FP7022 --held-out lets clients report losses on their own examples, which epsilon does not cover; leave "
            f"it out, or allow it with {mechanism.name}(raw_metrics=True, ...)"
        )


NAMED = ("regression", "multi_label", "seq2seq", TOKEN_LABELS, *COMPANIONS, *LANGUAGE)
"""Tasks that the option `task` names."""


def check_task(options: ServeOptions) -> str:
    """Return the task that the options name, as all clients receive it; empty: none.

    Moments that an operator gives are known beforehand: no client's examples have been looked at.

    Raises:
        ConfigError: an unknown task, regression without moments, or class names for a task without classes.
    """
    if not options.task:
        return ""
    kind = options.task.partition("(")[0].strip()
    if kind not in NAMED:
        raise ConfigError(
            f"FP1499 --task {options.task!r} is unknown; legal are 'regression(mean=50, deviation=10)', "
            "multi_label, token_labels, seq2seq, causal_lm, instruction and dpo, and with --side also towers, "
            "captions and patch_labels; for classification give --labels or --dataset"
        )
    task = TASKS.build(options.task)
    if not task.targets and options.labels and kind not in (TOKEN_LABELS, PATCH_LABELS):
        raise ConfigError(f"FP1137 --labels names classes, and {kind} has none; leave it out")
    if isinstance(task, Regression):
        if options.labels:
            raise ConfigError("FP1138 --labels names classes, and regression has none; leave it out")
        if not parse_spec(options.task).settings.keys() >= {"mean", "deviation"}:
            raise ConfigError(
                "FP1139 the server can't see the clients' numbers, so give their rough mean and deviation: --task "
                "'regression(mean=50, deviation=10)'; the start of the head corrects the mean"
            )
        task = dataclasses.replace(task, known=True)
    return format_part(task)


def check_asked(setup: Setup) -> None:
    """Refuse questions to clients whose answers can't be summed.

    Raises:
        PrivacyError: names the question, and a remedy.
    """
    if setup.secure_sum is not None and setup.measured.asks_clients(setup):
        raise PrivacyError(
            "FP7023 calibration on clients' examples takes several sums of one model, and a real client takes "
            f"part in one a round under {setup.secure_sum.name}; use calibration(rows=server) with --eval-data, "
            "or leave it out of --measure"
        )


def create_client_profiles(setup: Setup) -> Profiles:
    """Return the clients' profiles, with the adapter shapes that each client itself computes from its settings.

    Raises:
        ConfigError: an alpha that a client's own settings do not give for its rank.
        PrivacyError: what clients of a secure sum refuse, because in a sum all must do the same.
    """
    groups = setup.profiles.groups if isinstance(setup.profiles, Profiles) else [(p, 1) for p in setup.profiles]
    made = []
    for profile, count in groups:
        if (form := profile.form) is not None:
            own = setup.layout.get_form(form.rank)
            if not math.isclose(own.alpha, form.alpha, rel_tol=1e-9):
                raise ConfigError(
                    f"FP1500 a profile has rank {form.rank} and alpha {form.alpha:g}; a real client uses the "
                    f"alpha that its settings give for that rank, {own.alpha:g}: leave alpha out of the profile"
                )
            profile = dataclasses.replace(profile, form=own)
        if setup.secure_sum is not None and (profile.steps, profile.base, profile.adapter) != (0, "", "fp32"):
            raise PrivacyError(
                f"FP7121 under {setup.secure_sum.name} all clients do the same, so no client stands out in the "
                "sum; leave local_steps, base and adapter out of the profiles (clients may join with "
                "--precision)"
            )
        made.append((profile, count))
    if setup.secure_sum is not None:
        why = explain_uncompared(setup.strategy, setup.layout, setup.downlink, setup.layout.form, setup.config.seed, 1)
        energy = setup.measured.get(EnergySettings)
        if energy is not None and energy.lean:
            raise PrivacyError(
                "FP7122 energy(lean=True) gives clients different numbers of local steps, and under "
                f"{setup.secure_sum.name} all clients do the same; leave lean out"
            )
        if why:
            raise PrivacyError(
                f"FP7123 under {setup.secure_sum.name} clients compare the model that they are sent, and here "
                f"{UNCOMPARED[why]}; use --downlink fp32, small, medium or tiny"
            )
    return Profiles(made)


def check_tasks(tasks: TaskSequence | None, options: ServeOptions) -> None:
    """Refuse a sequence of tasks that real clients can't follow.

    Raises:
        ConfigError: an example's class does not tell its task, or clients' own examples would score the tasks.
    """
    if tasks is None:
        return
    if not tasks.is_told_by_class:
        raise ConfigError(
            "FP1140 a real client finds the task of an example by its class, so each class must belong to one task; "
            "use tasks(data, classes=N), or datasets whose classes have different names"
        )
    if options.held_out:
        raise ConfigError(
            f"FP1836 --held-out {options.held_out:g} scores on clients' examples of all tasks at once; score each task "
            "on the server's examples, with --eval-data dataset, or leave --held-out out"
        )

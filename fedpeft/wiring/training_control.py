"""Decisions by validation examples: whether a step counts, which state is kept, when to stop, and what is fitted.

With `auto`, they decide as much as is right:

- Under privacy they decide nothing unless they are public. A kept state, a last round or a temperature would disclose
  examples that no epsilon covers.
- They judge no state if clients have tensors of their own, which the server can neither evaluate nor restore.
- They judge no state in continual learning, because they contain examples of later tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft.aggregation.safeguard import Safeguard
from fedpeft.errors import ConfigError, FedpeftError, PrivacyError
from fedpeft.parts.families import SAFEGUARDS

if TYPE_CHECKING:
    from fedpeft.wiring.run_spec import RunSpec


@dataclass(frozen=True)
class TrainingControl:
    """The decisions that validation examples make.

    Attributes:
        safeguard: judges each step; None: all steps count.
        keep_best: whether the best state is the result, or the last.
        patience: evaluations without a better state after which the run ends; 0: it takes all its rounds.
        fits: whether a temperature and weights of prompts are fitted on these examples.
    """

    safeguard: Safeguard | None = None
    keep_best: bool = False
    patience: int = 0
    fits: bool = True


def build_training_control(spec: RunSpec, personal: bool, rows: bool = True, tasks: bool = False) -> TrainingControl:
    """Return the decisions that the settings leave to validation examples.

    Args:
        spec: the run.
        personal: whether clients have tensors of their own.
        rows: whether the server has validation examples.
        tasks: whether the examples are of several tasks in sequence, and so of later tasks, too.

    Raises:
        PrivacyError: the settings let examples decide that are not known to be public.
        ConfigError: the settings ask for decisions that are not possible here.
    """
    config, validation, guard = spec.config, spec.measured.validation, spec.safeguard
    hidden = spec.is_private and not validation.public
    deciding = {
        f"safeguard={config.safeguard}": guard is not None and guard.watches,
        "validation(keep=best)": validation.keep == "best",
        f"validation(patience={validation.patience})": validation.patience > 0,
    }
    asked = next((flag for flag, is_given in deciding.items() if is_given), "")
    if validation.public and not spec.is_private:
        raise ConfigError(
            "FP1389 validation(public=True) has an effect only with --privacy; give --privacy, too, or leave public out"
        )
    is_undecidable = hidden or personal or not rows or tasks
    if is_undecidable and asked:
        raise _create_decision_error(asked, hidden, personal, not rows, spec)
    if is_undecidable:
        return TrainingControl(fits=not hidden)
    safeguard = choose_safeguard(spec)
    if validation.patience and validation.keep == "last":
        raise ConfigError(
            "FP1394 patience compares with the best state, and keep=last keeps none; leave one of them out"
        )
    return TrainingControl(safeguard, validation.keep != "last", validation.patience)


def _create_decision_error(asked: str, hidden: bool, personal: bool, without_rows: bool, spec: RunSpec) -> FedpeftError:
    """Return the error of a run in which validation examples can't decide what the setting `asked` leaves to them."""
    if hidden:
        return PrivacyError(
            f"FP7116 {asked} would let validation examples decide, which epsilon does not cover; leave it out, or "
            "declare them public with --measure 'validation(public=True)'"
        )
    if personal:
        return ConfigError(
            f"FP1390 {asked} needs one global model, and with {spec.config.strategy} each client has its own model, "
            "which the server can neither judge nor restore; leave it out"
        )
    if without_rows:
        return ConfigError(
            f"FP1391 {asked} needs validation examples at the server; give --eval-data without --held-out, or leave "
            "it out"
        )
    return ConfigError(
        f"FP1392 {asked} would let examples of later tasks decide; leave it out: in continual learning all steps "
        "count, and the last state is the result"
    )


def choose_safeguard(spec: RunSpec) -> Safeguard | None:
    """Return the safeguard of a run whose steps validation examples may judge; None: all steps count.

    By default it is `undo`. It keeps the learning rate if noise has the same size however small updates are.

    Raises:
        ConfigError: the named safeguard lowers the learning rate, so that noise would drown smaller updates.
    """
    guard = spec.safeguard
    noise_stays = spec.is_private and not spec.is_private_per_example
    if guard is None:
        guard = SAFEGUARDS.build("undo(rate=1)" if noise_stays else "undo")
    elif guard.lowers and noise_stays:
        raise ConfigError(
            f"FP1393 safeguard={spec.config.safeguard} lowers the learning rate after an undone step, and the noise "
            f"of {spec.config.privacy} stays the same and would drown smaller updates; use undo(rate=1)"
        )
    return guard if guard.watches else None

"""Which parts of a run go together; what makes no sense is refused before anything is trained, with the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedpeft.aggregation.head_start import HeadStart
from fedpeft.aggregation.server_optimizer import SERVER_OPTIMIZERS, ServerOptimizer
from fedpeft.aggregation.strategy import (
    GatherStrategy,
    LinearStrategy,
    RoundStrategy,
    Strategy,
    shared_sum,
    shared_sums,
    strategies,
)
from fedpeft.clients.drift import Correction
from fedpeft.communication.uplink import Uplink
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.models.quantized import PRECISIONS, check_available
from fedpeft.parts import name_of, part_text
from fedpeft.peft.adapter import ClientForm, Layout
from fedpeft.peft.method import PeftMethod
from fedpeft.privacy.mechanism import Mechanism
from fedpeft.privacy.secure_sum.sum import SecureSum
from fedpeft.run.caption_checks import check_captions
from fedpeft.run.group_checks import check_groups
from fedpeft.run.measured_checks import check_measured
from fedpeft.run.profiles import Profile, kinds
from fedpeft.run.rank_checks import check_ranks
from fedpeft.run.target_checks import check_targets
from fedpeft.run.task_checks import check_tasks
from fedpeft.run.translation_checks import check_translation

if TYPE_CHECKING:
    from fedpeft.run.setup import Setup


def check(setup: Setup) -> None:
    """Refuse parts that don't go together.

    Raises:
        ConfigError, PrivacyError: says which, and why.
    """
    config, strategy, forms = setup.config, setup.strategy, [profile.form for profile in kinds(setup.profiles)]
    check_groups(setup)
    _check_memory(strategy, setup.uplink)
    check_ranks(setup)
    check_method(setup.method, strategy, config.strategy.partition("(")[0].strip(), forms)
    if not setup.factor_view:
        strategy.check(setup.layout, forms)
    check_server(strategy, setup.optimizer)
    for correction in setup.drift.corrections:
        correction.check(strategy, setup.training, forms)
        _check_needs(correction, strategy, setup.layout)
    _check_bases(setup.profiles, config.dtype, setup.method)
    _ = setup.steering  # says what validation rows can't decide
    _check_recomputing(setup)
    _check_reference(setup)
    if setup.facts.task == "token_labels" and setup.head.exchanges:
        raise ConfigError(
            f"head={config.head} starts from features of whole rows, and here each word has a label; take --head zero"
        )
    if setup.task.compares:
        _check_pairs(setup)
    check_targets(setup)
    if setup.task.describes:
        check_captions(setup)
    if setup.task.translates:
        check_translation(setup)
    if setup.drift.needs_shares:
        check_label_shift(setup.facts.task, config.head, setup.head, setup.mechanism)
        if setup.drift.least_skew and setup.secure_sum is not None:
            raise PrivacyError(
                f"nobody learns how far clients' classes lie apart under {setup.secure_sum.name}; leave least out of "
                "label_shift, which then acts in any case, or leave it out of --drift"
            )
    _check_server_noise(setup)
    check_measured(setup)
    check_tasks(setup)
    if setup.secure_sum is not None:
        _check_secure_sum(setup.secure_sum, setup)
    if setup.mechanism is not None:
        _check_mechanism(setup.mechanism, setup)
        _check_private_run(setup.mechanism, setup)


def check_method(
    method: PeftMethod, strategy: Strategy, strategy_name: str, forms: Sequence[ClientForm | None]
) -> None:
    """Refuse strategies and sizes that are not right for the PEFT method.

    Raises:
        ConfigError: which, and what to take instead.
    """
    if method.strategies and strategy_name not in method.strategies:
        raise ConfigError(
            f"{strategy_name} is not right for {method.name}: its parameters multiply each other, and the mean of "
            f"products is not the product of means; take --strategy {' or '.join(method.strategies)}"
        )
    if isinstance(strategy, GatherStrategy) and strategy.fills_base and not method.residual:
        raise ConfigError(
            f"{strategy_name} puts what the factors can't hold into the base, which {method.name} does not allow; "
            "take flexlora"
        )
    if not method.mixed_sizes and len({*forms, method.form}) > 1:
        raise ConfigError(f"{method.name} has one size for all clients; leave ranks and alphas away")


def _check_server_noise(setup: Setup) -> None:
    """Refuse a server optimizer that takes out noise where the server adds none."""
    mechanism = setup.mechanism
    adds = mechanism is not None and mechanism.protects and not (mechanism.noises_updates or mechanism.summed)
    if setup.optimizer.needs_noise and not adds:
        raise ConfigError(
            f"--server-optimizer {setup.config.server_optimizer} takes out noise that the server adds, and it adds "
            "none here; leave corrected out, or take --privacy user_dp"
        )


def _check_recomputing(setup: Setup) -> None:
    """Gradients per example are told from one pass."""
    optimizer, private = setup.training.optimizer, setup.mechanism is not None and setup.mechanism.per_example
    if private and (optimizer.checkpointing or optimizer.rows_per_pass):
        raise ConfigError(
            "dp_sgd makes gradients per example: leave checkpointing and rows_per_pass of the optimizer out"
        )


def _check_reference(setup: Setup) -> None:
    """A loss that compares with the base needs the base as it was; and gradients per example are of one sequence."""
    name, private = setup.facts.task.partition("(")[0], setup.mechanism is not None and setup.mechanism.per_example
    if private and not setup.task.per_example:
        raise PrivacyError(
            f"{name} {setup.task.per_example_missing}, of which dp_sgd can't tell a row's gradient; take user_dp or "
            "local_dp, which protect a client's whole update"
        )
    strategy = setup.strategy
    if setup.task.reference and isinstance(strategy, GatherStrategy) and strategy.fills_base:
        raise ConfigError(
            f"{name} compares with the base without adapter, and {setup.config.strategy} changes that base; take "
            "flexlora"
        )


def _check_pairs(setup: Setup) -> None:
    """Refuse steps in which a row is not compared with others, or is compared with fewer than it seems."""
    config = setup.config
    if config.batch_size < 2:
        raise ConfigError("a pair is told from the others of its batch: give --batch-size 2 or more, 16 for a start")
    if setup.training.optimizer.rows_per_pass:
        raise ConfigError(
            "rows_per_pass would compare the rows of each pass alone; leave it out of the optimizer, or give a smaller "
            "--batch-size"
        )
    if setup.mechanism is not None and setup.mechanism.audit:
        raise PrivacyError("audits score rows one by one, and pairs are judged among all; leave audit out of --privacy")


def check_server(strategy: Strategy, optimizer: ServerOptimizer) -> None:
    """Refuse a server optimizer where the rule leaves it nothing to step along.

    Raises:
        ConfigError: says why, and what to take instead.
    """
    name = type(strategy).__name__
    plain = optimizer == SERVER_OPTIMIZERS.build("sgd")
    if isinstance(strategy, RoundStrategy) and not plain:
        raise ConfigError(
            f"{name} computes the next factors itself, so there is no mean update that a server optimizer could step "
            "along; leave --server-optimizer at sgd with learning rate 1, or take a linear strategy such as fedit"
        )
    if strategy.counts_clients and not plain:
        raise ConfigError(
            f"{name} keeps the mean over all clients, and a server optimizer would lead away from it; leave "
            "--server-optimizer at sgd with learning rate 1"
        )
    if _turns(strategy) and not plain and type(optimizer).__name__ != "SGD":
        raise ConfigError(
            f"{name} turns the factors after each round, and the moments of a server optimizer would belong to the "
            "factors before; use --server-optimizer sgd"
        )


def _turns(strategy: Strategy) -> bool:
    """Whether a linear rule makes new factors after its step."""
    return isinstance(strategy, LinearStrategy) and strategy.new_factors


def _check_mechanism(mechanism: Mechanism, setup: Setup) -> None:
    config = setup.config
    if setup.strategy.asynchronous:
        raise ConfigError(f"{config.strategy} has no rounds with a cohort that privacy could be accounted for")
    if mechanism.summed and mechanism.per_example:
        _check_sums_of_gradients(mechanism, setup)
    if setup.factor_view and not mechanism.noises_updates:
        raise ConfigError(
            f"{config.peft} is aggregated by weight changes, not by a sum that {mechanism.name} could "
            "bound; take the PEFT method lora, or dp_sgd"
        )


def _check_sums_of_gradients(mechanism: Mechanism, setup: Setup) -> None:
    """Refuse what would act in local steps, or ConfigError says what, where clients send sums of gradients."""
    config, work = setup.config, setup.training.work
    default = next(f.default for f in dataclasses.fields(config) if f.name == "local_work")
    if config.local_work != default and work.steps_for(10**6, config.batch_size) != 1:
        raise ConfigError(
            f"{mechanism.name}(unit=rows) takes one step a round, with a sum over all clients; leave --local-work out, "
            "and give more --rounds or a larger --batch-size"
        )
    if mechanism.whitens and not setup.whitened_directions:
        raise ConfigError(
            f"whiten=True is for a head that is trained alone, from a start that tells how features vary, and this is "
            f"--peft {config.peft} from --head {config.head}; take --peft linear_probe --head private_ridge, where "
            "rows have one class each"
        )
    if setup.method.regularised:
        raise ConfigError(
            f"{setup.method.name} adds a penalty in local steps, of which {mechanism.name}(unit=rows) has none; take "
            "--peft lora or bottleneck"
        )
    if setup.drift.corrections:
        raise ConfigError(
            f"{setup.drift.corrections[0].name} acts in local steps, of which {mechanism.name}(unit=rows) has none; "
            "leave it out of --drift"
        )


def _check_secure_sum(secure: SecureSum, setup: Setup) -> None:
    """Refuse what needs more of a client's update than that it is in a sum.

    Raises:
        PrivacyError: says what, and what to take instead.
    """
    config, name, strategy = setup.config, secure.name, setup.strategy
    if setup.factor_view:
        raise PrivacyError(
            f"{config.peft} is aggregated by weight changes, not by a sum that {name} could form; take the PEFT method "
            "lora"
        )
    if not (strategy.sum_of_clients() and shared_sum(strategy, setup.layout)):
        *others, last = [n for n in shared_sums(setup.layout) if strategies.part(n).sum_of_clients()]
        take = f"take {', '.join(others)} or {last}" if others else f"take {last}"
        raise PrivacyError(
            f"{name} lets the server see the sum of the updates alone, and {name_of(type(strategy))} needs more of "
            f"them than that; {take}"
        )
    if config.codec != "fp32":
        raise PrivacyError(
            f"{name} has a code of its own, integers on a grid that all clients have in common; "
            f"leave --codec out, and give {name} other bits"
        )
    if len({profile.form for profile in kinds(setup.profiles)}) > 1:
        raise PrivacyError(f"{name} adds up vectors of one length; give all clients the same rank and alpha")
    for correction in setup.drift.corrections:
        if correction.travels:
            raise PrivacyError(
                f"the states that {correction.name}'s clients send would be seen one by one; leave it out of --drift"
            )


def _check_bases(profiles: Sequence[Profile], dtype: str, method: PeftMethod) -> None:
    bases = {profile.base for profile in kinds(profiles)}
    for precision in PRECISIONS:
        if precision in bases:
            check_available(precision)
            if not method.few_bits:
                raise ConfigError(
                    f"{method.name} reads or trains the base's own weights, which a base in {precision} does not have; "
                    "leave it out of the profiles, or take --peft lora"
                )
    if dtype == "fp64" and bases - {""}:
        raise ConfigError("an fp64 run is one for exact comparisons: leave base out of its profiles")


def _check_memory(strategy: Strategy, uplink: Uplink) -> None:
    """Refuse a memory that would lose its meaning from round to round, or ConfigError says what to take instead."""
    if uplink.remembers and strategy.new_factors:
        raise ConfigError(
            f"{type(strategy).__name__} makes new factors each round, in which a memory of dropped parts of the old "
            f"ones has no meaning; use --codec {str(uplink.without_memory())!r}"
        )


def _check_needs(correction: Correction, strategy: Strategy, layout: Layout) -> None:
    """Refuse a correction with nothing to act on, or ConfigError says what it looks for."""
    trained = strategy.trained(layout, 1)
    for ending in correction.needs:
        if not any(name.endswith(ending) for name in trained):
            raise ConfigError(
                f"{correction.name} acts on tensors called ...{ending}, and clients train none in every round; leave "
                "it out, or take --peft lora with a strategy that trains both factors, such as fedit"
            )
    if correction.travels and not trained - strategy.private(layout) - strategy.still(layout):
        raise ConfigError(
            f"{correction.name} corrects what clients train and share, and with {name_of(type(strategy))} they share "
            "nothing that they train; leave it out"
        )


def check_label_shift(task: str, name: str, head: HeadStart, mechanism: Mechanism | None) -> None:
    """Refuse the correction of label shift where shares of classes are not known, or would not be protected.

    Raises:
        ConfigError: there are no classes, or nobody learns how many rows each has.
        PrivacyError: a row would change the loss of a client's other rows.
    """
    if task != "classification":
        name = task.partition("(")[0]
        has = {"regression": "numbers have", "multi_label": "rows with several labels have"}
        has |= dict.fromkeys(("causal_lm", "instruction", "dpo"), "a language model has")
        what = has.get(name, f"rows of {name} have")
        raise ConfigError(f"label_shift corrects for shares of the rows' classes, and {what} none; leave it out")
    if mechanism is not None and mechanism.per_example:
        raise PrivacyError(
            f"label_shift makes the loss of each row depend on the labels of a client's other rows, which "
            f"{mechanism.name} does not cover; leave it out"
        )
    if not head.exchanges or head.bounded:
        raise ConfigError(
            f"label_shift needs the classes' shares among all rows, which head={name} does not ask clients for; take "
            "--head ridge or centroids, or leave it out"
        )


def _check_private_run(mechanism: Mechanism, setup: Setup) -> None:
    """Refuse what would leave the clients beside the mechanism, or undo its clipping.

    Any codec may follow noise, and any may precede the server's clipping, error feedback included. But precision that
    the server sets by what it knows of the cohort lets one client change what the others contribute.

    Raises:
        PrivacyError: says what, and what to do.
    """
    config, head, uplink = setup.config, setup.head, setup.uplink
    if setup.strategy.weighting == "rows":
        raise PrivacyError(
            "weighting=rows would tell how many rows each client has, and let one client count for many; leave it out "
            "(it is uniform under --privacy)"
        )
    if head.exchanges and not head.bounded:
        raise PrivacyError(
            f"head={config.head} sends sums over the clients' rows that {mechanism.name} does not protect; use "
            "--head zero, private_centroids or private_ridge"
        )
    for correction in setup.drift.corrections:
        if correction.travels:
            raise PrivacyError(
                f"the states that {correction.name}'s clients send come from unprotected rows; leave it out of --drift"
            )
    if uplink.rules and not mechanism.noises_updates:
        raise PrivacyError(
            f"the precision rule in --codec {str(uplink)!r} would let one client change what others contribute, which "
            f"{mechanism.name} can't bound; name the codec alone"
        )
    for rule in uplink.rules:
        if rule.reads_losses and mechanism.silent:
            raise PrivacyError(
                f"{part_text(rule)} goes by the clients' losses, which they keep for themselves under "
                f"{mechanism.name}; leave it out, or allow raw_metrics=True"
            )
    if setup.strategy.personal_pull is not None and mechanism.per_example:
        raise PrivacyError(
            f"{name_of(type(setup.strategy))} trains a second model on the same rows, which {mechanism.name} does not "
            "account for; take user_dp, or another strategy"
        )
    if setup.personal and mechanism.silent:
        raise PrivacyError(
            f"{config.strategy} is evaluated by clients on their own rows, and these metrics are not protected; take "
            f"another strategy, or allow it with {mechanism.name}(raw_metrics=True, ...)"
        )

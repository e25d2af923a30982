"""Checks of settings before torch, rows or a model are loaded.

Nothing here imports torch, so a user reads about a mistake within a second. Later modules repeat these checks:
`fedpeft.wiring.run_spec.parse_run` builds the parts, before any row is read.
"""

from __future__ import annotations

from fedpeft.parts.families import SUMS, codecs
from fedpeft.parts.spec import parse_spec
from fedpeft.privacy.secure_sum.cohorts import check_cohort
from fedpeft.wiring.catalogue import FLAGS
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.profiles import check_counts, count_clients, load_groups
from fedpeft.wiring.sampling import compute_cohort_size


def check(config: RunConfig) -> None:
    """Refuse unknown parts, settings of parts that are not legal, and a cohort that the clients can't form.

    Raises:
        ConfigError, PrivacyError: says what is legal.
    """
    for name, flag in FLAGS.items():
        flag.check_early(getattr(config, name.replace("-", "_")))
    if config.downlink.strip() != "auto":
        codecs.check_steps(config.downlink)
    groups = load_groups(config.ranks, config.clients)
    if clients := count_clients(config.clients, groups):
        if groups:
            check_counts(groups, clients)
        size = compute_cohort_size(config.cohort, clients)
        if config.privacy and (name := parse_spec(config.privacy).name) in SUMS.names:
            check_cohort(name, size)

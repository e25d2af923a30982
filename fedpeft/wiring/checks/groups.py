"""What does not go with rules whose clients fall into groups (`fedpeft.aggregation.grouped_rules`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.aggregation.grouped_rules import GroupedStrategy
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.parts import name_of

if TYPE_CHECKING:
    from fedpeft.wiring.setup import Setup


def check_groups(setup: Setup) -> None:
    """Refuse what counts on one state of all clients, and on nobody learning what single clients have sent.

    Raises:
        ConfigError, PrivacyError: says what, and what to do.
    """
    if not isinstance(setup.strategy, GroupedStrategy):
        return
    name, uplink = name_of(type(setup.strategy)), setup.uplink
    if setup.secure_sum is not None:
        raise PrivacyError(
            f"FP7087 {name} finds its groups in single clients' updates, and {setup.secure_sum.name} hides "
            "these; use fedit"
        )
    if setup.is_private:
        raise PrivacyError(
            f"FP7088 {name} sends each client a model that discloses single other clients' updates, and no "
            "mechanism accounts for that; use fedit"
        )
    if not setup.downlink.lossless:
        raise ConfigError(
            f"FP1304 {name} sends each group its own state, and a lossy downlink sends the changes of one common "
            "state; use --downlink fp32"
        )
    if uplink.has_memory:
        raise ConfigError(
            f"FP1305 {name} moves clients between states, and error feedback belongs to one state; use --codec "
            f"{str(uplink.remove_memory())!r}"
        )

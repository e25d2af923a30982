"""A user's own hook: a part of a plugin that `--hook` attaches to the round loop.

Without privacy and secure sums, it may override every method of `RoundHook`. With one of them, it reads what the run
discloses and nothing else: see `DISCLOSED`, `DisclosedState` and `DisclosedLog`. These limits prevent disclosures by
mistake. A plugin is code with its user's rights, so they do not stop code that reads the run's files or a clock itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from fedpeft.errors import PrivacyError
from fedpeft.machine.json_values import check_json
from fedpeft.parts import list_overrides, name_of
from fedpeft.peft.adapter import State
from fedpeft.reporting.observer import RoundResult
from fedpeft.rounds.hooks import RECORD, NotesReports, RoundHook

if TYPE_CHECKING:
    from fedpeft.rounds.progress import ServerState
    from fedpeft.rounds.round_log import RoundLog
    from fedpeft.wiring.setup import Setup

DISCLOSED: Final = ("check", "open", "get_checkpoint", "fingerprint", "ends", "measure", "section")
"""Methods that a user's hook may override under `--privacy`. The others see or change what privacy protects."""


@dataclass(frozen=True)
class UserHook(RoundHook):
    """A user's own hook; subclasses are frozen dataclasses whose fields are the user's settings.

    Attributes:
        memory: what the hook remembers from round to round, as JSON values; a resumed run finds it again.
    """

    memory: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name on the command line."""
        return name_of(type(self))

    def check(self, setup: Setup) -> None:
        """Refuse a run that the hook can't serve, before anything is trained.

        Raises:
            ConfigError, PrivacyError: names what does not fit, and a remedy.
        """

    def open(self, state: ServerState | None) -> None:
        """Restore the memory."""
        if state is not None:
            self.memory.update(state.hooks.get(self.name, {}))

    def get_checkpoint(self) -> dict[str, Any]:
        """Return the memory."""
        return check_json(self.memory, f"the memory of the hook {self.name}")

    def record(self, log: RoundLog, **values: Any) -> None:
        """Write a line of hooks.jsonl for this round; `values` are JSON values by name."""
        line = {"round": log.result.round, "hook": self.name, **values}
        log.lines.setdefault(RECORD, []).append(check_json(line, f"a line of the hook {self.name}"))


def check_user_hook(hook: UserHook, setup: Setup) -> None:
    """Refuse a hook that the run's privacy does not allow, or that refuses the run itself.

    Raises:
        PrivacyError: the hook overrides a method that could disclose or change what privacy protects.
        ConfigError: from the hook's own `check`.
    """
    privacy, overrides = setup.config.privacy, list_overrides(hook, RoundHook)
    if isinstance(hook, NotesReports):
        overrides.append("note_report")
    if setup.is_protected:
        if refused := [name for name in overrides if name not in DISCLOSED]:
            raise PrivacyError(
                f"FP7124 the hook {hook.name} overrides {', '.join(refused)}; under --privacy {privacy} a hook of your "
                f"own may override {', '.join(DISCLOSED)} only, so leave out --hook {hook.name} or --privacy"
            )
        if "ends" in overrides and setup.mechanism is not None and setup.mechanism.secret_cohort:
            raise PrivacyError(
                f"FP7125 the hook {hook.name} can end the run, and under --privacy {privacy} the last round "
                f"could disclose how many clients took part; leave out --hook {hook.name}, or use dp_sgd or "
                "local_dp"
            )
    hook.check(setup)


@dataclass(frozen=True)
class _Disclosed:
    """What a run with privacy discloses to a user's hook; reading anything else is a PrivacyError."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # as copy and pickle ask for
            raise AttributeError(name)
        known = ", ".join(vars(self))
        raise PrivacyError(
            f"FP7126 a hook of your own reads {name}, which a run with --privacy does not disclose; it may read {known}"
        )


@dataclass(frozen=True)
class DisclosedState(_Disclosed):
    """The server state, as far as a run with privacy discloses it.

    Attributes:
        round: the last finished round; 0: the preparation.
        adapter: the global state, which every client receives.
        hooks: what the hook itself has saved, by its name.
    """

    round: int
    adapter: State
    hooks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class DisclosedLog(_Disclosed):
    """The log of a round, as far as a run with privacy discloses it.

    Attributes:
        result: the line of rounds.jsonl, without what privacy hides.
        lines: lines of record files, by file name.
    """

    result: RoundResult
    lines: dict[str, list[dict[str, Any]]]


class GuardedHook(RoundHook):
    """A user's hook in a run with privacy: it receives disclosed states and logs only."""

    def __init__(self, hook: UserHook) -> None:
        """Hold the user's hook."""
        self.hook = hook

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the user's hook."""
        return self.hook.name

    def open(self, state: ServerState | None) -> None:
        """Forward the disclosed state."""
        self.hook.open(None if state is None else self._disclose(state))

    def get_checkpoint(self) -> dict[str, Any]:
        """Forward the call."""
        return self.hook.get_checkpoint()

    def fingerprint(self) -> str:
        """Forward the call."""
        return self.hook.fingerprint()

    def ends(self, state: ServerState) -> str:
        """Forward the disclosed state."""
        return self.hook.ends(self._disclose(state))

    def measure(self, state: ServerState, log: RoundLog) -> None:
        """Forward the disclosed state and log; the privacy hook has already removed the rest from the result."""
        disclosed: Any = DisclosedLog(log.result, {})
        self.hook.measure(self._disclose(state), disclosed)
        lines = [check_json(line, f"a line of the hook {self.name}") for line in disclosed.lines.get(RECORD, [])]
        log.lines.setdefault(RECORD, []).extend(line | {"hook": self.name} for line in lines)

    def section(self, state: ServerState) -> Mapping[str, Any] | None:
        """Forward the disclosed state."""
        return self.hook.section(self._disclose(state))

    def _disclose(self, state: ServerState) -> Any:
        own = {name: copy.deepcopy(saved) for name, saved in state.hooks.items() if name == self.name}
        return DisclosedState(state.round, dict(state.adapter), own)


def attach(setup: Setup) -> tuple[RoundHook, ...]:
    """Return the hooks that `--hook` names, each with a memory of its own."""
    hooks = [replace(hook) for hook in setup.hooks]
    return tuple(GuardedHook(hook) if setup.is_protected else hook for hook in hooks)

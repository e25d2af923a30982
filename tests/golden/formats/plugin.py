"""A plugin of version 0.3.0: a strategy, a codec step, a hook and a measurement."""

from dataclasses import dataclass

from fedpeft.aggregation.strategy import LinearStrategy
from fedpeft.communication.steps import ByteStep
from fedpeft.parts import setting
from fedpeft.rounds.user_hook import UserHook
from fedpeft.wiring.measurement import Measurement

plugin_format = 1


@dataclass(frozen=True)
class HalfMean(LinearStrategy):
    """A share of the mean update."""

    arrives_whole = False
    share: float = setting(0.5, "of each update that counts", above=0, high=1)

    def contribution(self, update, state, layout):
        """Return the scaled delta."""
        return {name: self.share * delta for name, delta in update.delta.items()}


@dataclass(frozen=True)
class Flipped(ByteStep):
    """All bits of a payload flipped."""

    def encode(self, data):
        """Return the flipped bytes."""
        return bytes(byte ^ 255 for byte in data)

    @classmethod
    def decode(cls, data, bound):
        """Return the bytes before."""
        return memoryview(bytes(byte ^ 255 for byte in data))


@dataclass(frozen=True)
class LastRound(UserHook):
    """An end after some rounds, counted over restarts."""

    rounds: int = setting(2, "rounds until the end", low=1)

    def measure(self, state, log):
        """Count the round."""
        self.memory["rounds"] = self.memory.get("rounds", 0) + 1
        self.record(log, counted=self.memory["rounds"])

    def ends(self, state):
        """Return why the run ends, if it does."""
        return "enough rounds" if self.memory.get("rounds", 0) >= self.rounds else ""

    def section(self, state):
        """Return the section of summary.json."""
        return {"counted": self.memory.get("rounds", 0)}


@dataclass(frozen=True)
class Size(Measurement):
    """The number of the test examples."""

    def compute(self, run, answers):
        """Return the section of the report."""
        return None if run.test is None else {"test_examples": len(run.test)}


parts = {
    "strategies": {"half_mean": HalfMean},
    "codecs": {"flipped": Flipped},
    "hooks": {"last_round": LastRound},
    "measurements": {"size": Size},
}

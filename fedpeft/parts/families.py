"""Families of parts: the folder, noun and base class of each.

Nothing here imports torch: a family names its base class, and imports it when a part is built or loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from fedpeft.errors import ConfigError
from fedpeft.parts.part import Family, import_class
from fedpeft.parts.spec import Spec, parse_spec, split_outside_parentheses

if TYPE_CHECKING:
    from fedpeft.aggregation.head_start import HeadStart
    from fedpeft.aggregation.safeguard import Safeguard
    from fedpeft.aggregation.server_optimizer import ServerOptimizer
    from fedpeft.aggregation.strategy import Strategy
    from fedpeft.clients.attack import Attack
    from fedpeft.clients.drift import Correction
    from fedpeft.clients.local_optimizer import LocalOptimizer
    from fedpeft.clients.local_work import LocalWork
    from fedpeft.communication.precision_rule import PrecisionRule
    from fedpeft.communication.steps import Step
    from fedpeft.data.partition import Partitioner
    from fedpeft.data.rows import Source
    from fedpeft.models.answers.metric import Metric
    from fedpeft.models.base_model import BaseModel
    from fedpeft.models.task import Task
    from fedpeft.peft.method import PeftMethod
    from fedpeft.privacy.mechanism import Mechanism
    from fedpeft.privacy.secure_sum.sum import SecureSum
    from fedpeft.privacy.server_noise import ServerNoise
    from fedpeft.rounds.user_hook import UserHook
    from fedpeft.trust.corruption import Corruption
    from fedpeft.trust.question import Question
    from fedpeft.wiring.grid import SimulationGrid
    from fedpeft.wiring.measurement import Measurement
    from fedpeft.wiring.sampling import AwareSampler


T = TypeVar("T")

_FILE = re.compile(
    r"[^:()]*(/[^:()]*|\.(csv|tsv|tab|xlsx?|jsonl?|ndjson|parquet|pq|arrow|feather|txt|gz))", re.IGNORECASE
)


class DatasetFamily(Family[T]):
    """Datasets. A file name alone is not the text of a dataset."""

    def parse_text(self, text: str) -> Spec:
        """See `Family`."""
        if _FILE.fullmatch(text.strip()):
            path = text.strip()
            hub = "" if "." in path else f", or hf:{path} for a dataset of the hub"
            raise ConfigError(f"FP1085 {text!r} is not a dataset; write file:{path} for a file of rows{hub}")
        return super().parse_text(text)


HYBRID: Final = "fedpeft.peft.hybrid.Hybrid"
"""The class of several PEFT methods that are joined."""


METHOD_ALIASES: Final[Mapping[str, str]] = {"p_tuning_v2": "prefix_tuning(layers=0)"}
"""Other names of PEFT methods, each with the text that it stands for; settings that a user gives come on top."""


class MethodFamily(Family["PeftMethod"]):
    """PEFT methods by file name, its unique beginning or an alias, and several joined by `+`."""

    def build(self, text: str | Spec | PeftMethod) -> PeftMethod:
        """Return the method that `text` describes; a method is returned as it is.

        Raises:
            ConfigError: unknown method or setting, or methods that can't be joined.
        """
        if isinstance(text, str):
            words = split_outside_parentheses(text, "+")
            if len(words) > 1:
                made: PeftMethod = import_class(HYBRID)(tuple(self.build(word) for word in words))
                return made
        return super().build(self._complete_name(text) if isinstance(text, Spec) else text)

    def check(self, text: str) -> None:
        """See `Family`; joined methods are checked one by one."""
        for word in split_outside_parentheses(text, "+"):
            super().check(word)

    def replace_paths(self, text: str, change: Callable[[str], str]) -> str:
        """See `Family`."""
        replace_in = super().replace_paths
        return " + ".join(replace_in(word, change) for word in split_outside_parentheses(text, "+"))

    def parse_text(self, text: str) -> Spec:
        """See `Family`."""
        return self._complete_name(super().parse_text(text))

    def _complete_name(self, spec: Spec) -> Spec:
        given = parse_spec(METHOD_ALIASES[spec.name]).settings if spec.name in METHOD_ALIASES else {}
        return replace(spec, name=self.complete_name(spec.name), settings={**given, **spec.settings})

    def find_hidden(self, name: str) -> str:
        """Return the method that a method called `name` would hide: `prefix` hides prefix_tuning."""
        return next((own for own in (*self.own_names, *METHOD_ALIASES) if own.startswith(name)), "")

    def complete_name(self, name: str) -> str:
        """Return the method that `name` stands for: its alias, or the only name that begins with `name`.

        So `prefix` is prefix_tuning; longer variants, such as prefix_tuning_plus, do not count.
        """
        if name in METHOD_ALIASES:
            return parse_spec(METHOD_ALIASES[name]).name
        found = [n for n in self.names if n.startswith(name)]
        shortest = min(found, key=len, default=name)
        clear = all(n == shortest or n.startswith(shortest + "_") for n in found)
        return shortest if name not in self.names and clear else name


PRESETS: Final[Mapping[str, str]] = {
    "fp64": "cast(dtype=fp64)",
    "fp32": "cast(dtype=fp32)",
    "bf16": "cast(dtype=bf16) | rans",
    "fp16": "cast(dtype=fp16) | rans",
    "int8": "quantize(bits=8) | rans",
    "int4": "quantize(bits=4) | rans",
    "unbiased": "quantize(step=0.99, rounding=dither) | rans",
    "medium": "adaptive(bits=2.0, gain=length) | rans",
    "small": "adaptive(bits=0.99, gain=length) | rans",
    "drive": "rotate | sign(scale=drive)",
    "tiny": "adaptive(bits=0.312, gain=length) | rans",
}
"""Codecs with a name, from exact to smallest.

Compression against fp32: bf16 3x, int8 4x, int4 8x, unbiased 15x, medium 16x, small 32x, drive 31x, tiny 100x. It is
less for an adapter that is so small or so uniform that hardly anything of it would arrive.

Presets with a gain are for the mean of many updates. The mean arrives at its length, and a single update
arrives longer. If a round has few clients, put a memory in front (`ef14 | small`). If the server clips or judges
single updates (`user_dp`, robust rules, `fedbuff` with a small buffer), take `int4` or `unbiased`.
"""

MEMORIES: Final[tuple[Literal["ef14", "ef21"], ...]] = ("ef14", "ef21")
"""The memories that a codec's text can name (`fedpeft.communication.error_feedback`)."""


class CodecFamily(Family[T]):
    """Codec steps. A codec's text also contains presets, memories and precision rules."""

    def check_alone(self, spec: Spec, text: str) -> None:
        """Refuse a codec of one word that is neither a step nor a preset.

        Raises:
            ConfigError: names presets and steps.
        """
        if not spec.settings and spec.name not in self.names:
            raise ConfigError(
                f"FP1050 unknown codec {text.strip()!r}; presets: {', '.join(PRESETS)}; steps: {', '.join(self.names)}"
            )

    def check(self, text: str) -> None:
        """Refuse words of a codec that mean nothing, and settings of its steps that are not legal.

        Raises:
            ConfigError: says what is legal.
        """
        words = [word for word in split_steps(text) if word]
        front = [word for word in words if parse_spec(word).name in (*MEMORIES, *PRECISION_RULES.names)]
        for rule in front:
            if parse_spec(rule).name not in MEMORIES:
                PRECISION_RULES.check(rule)
        self.check_steps(" | ".join(words[len(front) :]))

    def check_steps(self, text: str) -> None:
        """Refuse a preset or steps of a codec that mean nothing, and settings of steps that are not legal.

        Raises:
            ConfigError: says what is legal.
        """
        steps = [word for word in split_steps(text) if word]
        if len(steps) == 1 and steps[0] not in PRESETS:
            self.check_alone(parse_spec(steps[0]), steps[0])
        for step in steps:
            if step not in PRESETS:
                super().check(step)


def split_steps(text: str) -> list[str]:
    """Return the texts of a codec's steps.

    Raises:
        ConfigError: they are joined by another sign.
    """
    words = split_outside_parentheses(text, "|")
    if any(len(split_outside_parentheses(word, "+")) > 1 for word in words):
        raise ConfigError(f"FP1048 the codec {text!r} joins its steps with +; write step | step | ...")
    return words


ELSEWHERE: Final = {
    "fedavg": "FedAvg is called fedit here: --strategy fedit",
    "fedprox": "FedProx is a drift correction, for any strategy: --drift 'fedprox(mu=0.01)'",
    "scaffold": "SCAFFOLD is a drift correction, for any linear strategy: --drift scaffold",
    "la_lora": "LA-LoRA is a drift correction, for any strategy that trains both factors: --drift la_lora",
    "florist": "FLoRIST is flexlora that keeps a share of the energy: --strategy 'flexlora(energy=0.9)'",
    "fedavgm": "FedAvgM is a server optimizer: --strategy fedit --server-optimizer 'momentum(beta=0.9)'",
    "fedadam": "FedAdam is a server optimizer: --strategy fedit --server-optimizer adam",
    "fedyogi": "FedYogi is a server optimizer: --strategy fedit --server-optimizer yogi",
    "fedadagrad": "FedAdagrad is a server optimizer: --strategy fedit --server-optimizer adagrad",
}
"""By name in small letters, a clause about where it is."""

METRICS: Family[Metric] = Family(
    "fedpeft.models.answers.metrics",
    "metric",
    kind="fedpeft.models.answers.metric.Metric",
    abilities="fedpeft.models.answers.metric",
)
"""All metrics, by file name."""

HEADS: Family[HeadStart] = Family(
    "fedpeft.aggregation.heads",
    "head",
    kind="fedpeft.aggregation.head_start.HeadStart",
    abilities="fedpeft.aggregation.head_start",
)
"""All ways, by file name."""

SERVER_OPTIMIZERS: Family[ServerOptimizer] = Family(
    "fedpeft.aggregation.server_optimizers",
    "server optimizer",
    kind="fedpeft.aggregation.server_optimizer.ServerOptimizer",
)
"""All server optimizers, by file name."""

strategies: Family[Strategy] = Family(
    "fedpeft.strategies",
    "strategy",
    elsewhere=ELSEWHERE,
    kind="fedpeft.aggregation.strategy.Strategy",
    abilities="fedpeft.aggregation.abilities",
)
"""All strategies, by file name."""

SAFEGUARDS: Family[Safeguard] = Family(
    "fedpeft.aggregation.safeguards", "safeguard", kind="fedpeft.aggregation.safeguard.Safeguard"
)
"""All rules, by file name."""

TASKS: Family[Task] = Family(
    "fedpeft.models.tasks", "task", kind="fedpeft.models.task.Task", abilities="fedpeft.models.abilities"
)
"""All tasks, by file name."""

MODELS: Family[BaseModel] = Family(
    "fedpeft.models.pretrained", "model", group="models", kind="fedpeft.models.base_model.BaseModel"
)

PARTITIONS: Family[Partitioner] = Family(
    "fedpeft.data.partitions", "partition", kind="fedpeft.data.partition.Partitioner"
)

DATASETS: Family[Source] = DatasetFamily(
    "fedpeft.data.datasets", "dataset", kind="fedpeft.data.rows.Source", abilities="fedpeft.data.abilities"
)

codecs: CodecFamily[Step] = CodecFamily(
    "fedpeft.communication.codecs",
    "codec step",
    reserved=(*PRESETS, *MEMORIES, "by_link", "by_rows", "over_time"),
    kind="fedpeft.communication.steps.Step",
)
"""All steps, by file name."""

PRECISION_RULES: Family[PrecisionRule] = Family(
    "fedpeft.communication.precision_rules", "precision rule", kind="fedpeft.communication.precision_rule.PrecisionRule"
)
"""All rules, by file name."""

PEFT_METHODS = MethodFamily(
    "fedpeft.peft.methods",
    "PEFT method",
    group="peft_methods",
    kind="fedpeft.peft.method.PeftMethod",
    abilities="fedpeft.peft.abilities",
)
"""All methods, by file name."""

CORRUPTIONS: Family[Corruption] = Family(
    "fedpeft.trust.corruptions", "corruption", kind="fedpeft.trust.corruption.Corruption"
)
"""All of them, by file name."""

QUESTIONS: Family[Question] = Family("fedpeft.trust.questions", "question", kind="fedpeft.trust.question.Question")
"""All of them, by file name: what a client answers, and nothing else."""

SAMPLERS: Family[AwareSampler] = Family(
    "fedpeft.wiring.samplers", "sampler", kind="fedpeft.wiring.sampling.AwareSampler"
)
"""All of them, by file name."""

GRIDS: Family[SimulationGrid] = Family("fedpeft.wiring.grids", "grid", kind="fedpeft.wiring.grid.SimulationGrid")
"""All places, by file name."""

MEASUREMENTS: Family[Measurement] = Family(
    "fedpeft.measurements",
    "measurement",
    kind="fedpeft.wiring.measurement.Measurement",
    abilities="fedpeft.wiring.measurement",
)
"""All of them, by file name."""

HOOKS: Family[UserHook] = Family(
    "fedpeft.rounds.user_hooks",
    "hook",
    "hooks",
    kind="fedpeft.rounds.user_hook.UserHook",
    abilities="fedpeft.rounds.hooks",
    reserved=("budget_megabytes",),
)
"""All of them; they come from plugins. A reserved name is that of a built-in hook with a section."""

SERVER_NOISES: Family[ServerNoise] = Family(
    "fedpeft.privacy.server_noises", "server noise", kind="fedpeft.privacy.server_noise.ServerNoise"
)
"""All of them, by file name."""

SUMS: Family[SecureSum] = Family("fedpeft.privacy.sums", "secure sum", kind="fedpeft.privacy.secure_sum.sum.SecureSum")
"""All ways, by file name."""

MECHANISMS: Family[Mechanism] = Family(
    "fedpeft.privacy.mechanisms",
    "privacy mechanism",
    kind="fedpeft.privacy.mechanism.Mechanism",
    abilities="fedpeft.privacy.abilities",
)
"""All mechanisms, by file name."""

LOCAL_WORK: Family[LocalWork] = Family(
    "fedpeft.clients.amounts",
    "amount of local work",
    kind="fedpeft.clients.local_work.LocalWork",
    abilities="fedpeft.clients.local_work",
)
"""All of them, by file name."""

LOCAL_OPTIMIZERS: Family[LocalOptimizer] = Family(
    "fedpeft.clients.optimizers",
    "local optimizer",
    kind="fedpeft.clients.local_optimizer.LocalOptimizer",
    abilities="fedpeft.clients.local_optimizer",
)
"""All of them, by file name."""

CORRECTIONS: Family[Correction] = Family(
    "fedpeft.clients.corrections",
    "drift correction",
    kind="fedpeft.clients.drift.Correction",
    abilities="fedpeft.clients.drift",
)
"""All corrections, by file name."""

ATTACKS: Family[Attack] = Family(
    "fedpeft.clients.attacks",
    "attack",
    kind="fedpeft.clients.attack.Attack",
    abilities="fedpeft.clients.attack",
)
"""All attacks, by file name."""

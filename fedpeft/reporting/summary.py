"""The results and costs of a run, simulated or real: the content of summary.json, and its lines on the console."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fedpeft.machine import files
from fedpeft.machine.terminal import Console
from fedpeft.reporting.console import create_summary_table, format_bytes, format_duration, format_measure
from fedpeft.reporting.observer import compute_perplexity
from fedpeft.reporting.outcome import describe_outcome
from fedpeft.reporting.target_lines import list_target_lines

if TYPE_CHECKING:
    from fedpeft.privacy.engine import PrivacyEngine
    from fedpeft.rounds.progress import ServerState
    from fedpeft.wiring.setup import Setup

TEST_ROWS, VALIDATION_ROWS = "global model, test rows", "global model, validation rows"
OWN_ROWS, OWN_VALIDATION_ROWS = "mean over clients, own held-out rows", "mean over clients, own validation rows"
"""The examples of a simulation's accuracy.

They are the test set, unless the run is a trial of a search, or clients have their own models.
"""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The quality of the result. Accuracies are 0 to 1, losses in nats per prediction; unmeasured values are None.

    Attributes:
        metric: the main metric: "accuracy", "perplexity", "skill" or "label_accuracy". What is called accuracy below is
            then the skill of numbers (1 - mean squared error / deviation^2, at most 1), or the share of right decisions
            over several labels.
        accuracy, loss: of the kept state; NaN if there were no examples to measure on.
        accuracy_of: the examples of `accuracy`; None: unknown.
        perplexity: e to the loss, for language models.
        kept_round: the round whose state was kept; 0: the start.
        validation_loss, validation_accuracy: of the best state, if it is kept; None: the last state is (rounds.jsonl).
        worst_accuracy: mean of the worst tenth of the clients, on their own examples.
        shared_accuracy: of the global model, if `accuracy` is that of clients' own examples.
        accuracy_by_base: on a base in each precision that clients hold.
        last_accuracy, last_loss: of the last round's state; None: another one is kept, and `score_last` is False.
        baseline_accuracy: of the linear probe of the frozen base.
        private_probe_accuracy: of one release with the whole privacy budget and no training.
        alone_accuracy: mean over clients that trained the same adapter alone.
        centralised_accuracy, centralised_loss, centralised_learning_rate: of the same adapter on the pooled examples.
        calibration_error, calibration_error_scaled, temperature: on the test set, before and after scaling.
        forgetting: a second task before and after, see `fedpeft.simulation.forgetting.Forgetting`.
        retrieval: scores of pairs, see `fedpeft.simulation.retrieval.measure_retrieval`.
        membership_auc: of membership inference, the mean over clients; 0.5 is guessing.
        membership_auc_worst: the same, of the client that reveals most.
        membership_auc_worst_by_chance: the worst if no client revealed anything; with many small clients far above 0.5.
        audit_epsilon, audit_epsilon_one_run, audit_claimed, audit_passed: of the canary audit.
    """

    metric: str
    accuracy: float
    accuracy_of: str | None
    loss: float
    perplexity: float | None
    kept_round: int
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    worst_accuracy: float | None = None
    shared_accuracy: float | None = None
    accuracy_by_base: Mapping[str, float] | None = None
    last_accuracy: float | None = None
    last_loss: float | None = None
    baseline_accuracy: float | None = None
    private_probe_accuracy: float | None = None
    alone_accuracy: float | None = None
    centralised_accuracy: float | None = None
    centralised_loss: float | None = None
    centralised_learning_rate: float | None = None
    calibration_error: float | None = None
    calibration_error_scaled: float | None = None
    temperature: float | None = None
    forgetting: Mapping[str, Any] | None = None
    retrieval: Mapping[str, Any] | None = None
    membership_auc: float | None = None
    membership_auc_worst: float | None = None
    membership_auc_worst_by_chance: float | None = None
    audit_epsilon: float | None = None
    audit_epsilon_one_run: float | None = None
    audit_claimed: float | None = None
    audit_passed: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of the run. Bytes are the lengths of payloads, over all clients and resumes.

    Attributes:
        task: a name in `fedpeft.parts.families.TASKS`.
        rounds, clients, cohort: finished rounds, clients in all, and clients in a round.
        parameters: number of trained and exchanged parameters.
        uplink_bytes, downlink_bytes: from and to the clients.
        prepare_bytes: part of the uplink before round 1.
        base_bytes: frozen tensors that the strategy has sent to clients.
        rejected, rejected_by_client: updates that were left out; None by client under privacy.
        uplink_bytes_per_parameter: of updates; None: no update was sent.
        seconds_per_round: mean, over all resumes.
        losses_corrected: whether clients' losses were corrected for their class shares (label_shift); None: the run did
            not ask for it.
        seed, versions, hardware: the seed, library versions and machine of the run.
        epsilon, epsilon_median, dp_delta, noise_multiplier, privacy: the privacy claims, see
            `fedpeft.privacy.engine.PrivacyEngine.summary`; None: no protection.
    """

    task: str
    rounds: int
    clients: int
    cohort: int
    parameters: int
    uplink_bytes: int
    downlink_bytes: int
    prepare_bytes: int
    base_bytes: int
    rejected: int
    rejected_by_client: Mapping[str, int] | None
    uplink_bytes_per_parameter: float | None
    seconds_per_round: float
    seed: int
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    epsilon: float | None = None
    epsilon_median: float | None = None
    dp_delta: float | None = None
    noise_multiplier: float | None = None
    privacy: Mapping[str, Any] | None = None
    losses_corrected: bool | None = None

    @classmethod
    def of(
        cls,
        setup: Setup,
        progress: ServerState,
        cohort: int,
        protection: PrivacyEngine | None,
        fixed: Mapping[str, Any],
    ) -> Costs:
        """Return the costs of a run up to `progress`, on the hardware that `fixed` names."""
        counters = progress.counters
        parameters = counters.uplink_parameters
        update_bytes = counters.uplink_bytes - counters.prepare_bytes
        return cls(
            task=setup.facts.task,
            rounds=progress.round,
            clients=setup.clients,
            cohort=cohort,
            parameters=setup.layout.numel,
            uplink_bytes=counters.uplink_bytes,
            downlink_bytes=counters.downlink_bytes,
            prepare_bytes=counters.prepare_bytes,
            base_bytes=counters.base_bytes,
            rejected=counters.rejected,
            rejected_by_client=None if protection else {str(k): n for k, n in progress.rejections.items()},
            uplink_bytes_per_parameter=update_bytes / parameters if parameters else None,
            seconds_per_round=counters.round_seconds / max(1, progress.round),
            losses_corrected=setup.drift.has_corrected_losses(progress.told),
            seed=setup.config.seed,
            versions={name: version(name) for name in ("torch", "transformers", "peft", "flwr", "fedpeft")},
            hardware={name: fixed[name] for name in ("cpu", "gpus", "workers", "kernel")}
            | {"system": platform.platform()},
            **(protection.summary() if protection else {}),
        )


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of summary.json, with the groups' fields in one level; a file has all keys, whoever wrote it.

    Attributes:
        quality: the quality of the result, a group of fields.
        costs: the costs, a group of fields.
        distinct_rows: distinct training examples, all clients together; None: under privacy, if clients share examples,
            or unknown.
        partition: statistics of the partition; None: only the clients know it.
        wire_received_bytes: bytes that a server received, with its messages' frames; None: there was no wire, or the
            cohort is secret.
        wire_sent_bytes: bytes that a server sent, with its messages' frames; None: there was no wire, or the cohort is
            secret.
        refused: calls that the server has refused; None: there was no server.
        resumed: whether the run was resumed.
        seconds: time of the whole command, or since a resume.
        peak_memory_bytes: memory of all processes on this machine together; None: unknown.
        sampled: whether the run used only some of the dataset's examples (`fedpeft.data.datasets.sample`).
        template: template of prompts for questions with answers; None: the model's chat template, the template in the
            dataset's text, or there are no questions.
        phases: seconds of each phase of the command, in the order of their beginnings; None: not measured.
        trust: sections of `--measure`, by name (`docs/trust.md`); None: there are none.
        hooks: sections of hooks of the round loop, by name; None: there are none.
        ended_early: why the run ended before its last round; None: it has not.
        tasks: results of a sequence of tasks (`fedpeft.reporting.task_measures`); None: there was one task.
        targets: test results on classes, numbers, or several labels per example, with those of the frozen base's probe.
            They are the share of each class that is found, errors and correlations, or F1 and average precision
            (`fedpeft.models.target_measures`). None: there are none.
        spans: precision, recall and F1 of whole spans of token labels in the test set, together and by type
            (`fedpeft.simulation.span_scores`); None: there are none, or seqeval is missing.
        captions: captions of the images of the test set, with their scores (`fedpeft.simulation.captions`); None: there
            are none.
        patches: mean intersection over union of the patches' labels in the test set, with those of probes on frozen
            features and on pixels (`fedpeft.simulation.patch_scores`); None: there are none.
        clips: frames of a clip, and the accuracy of probes on one frame and on pixels
            (`fedpeft.simulation.clip_scores`); None: there are none.
    """

    quality: Quality
    costs: Costs
    distinct_rows: int | None = None
    partition: Mapping[str, Any] | None = None
    wire_received_bytes: int | None = None
    wire_sent_bytes: int | None = None
    refused: int | None = None
    resumed: bool = False
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    sampled: bool = False
    template: str | None = None
    phases: Mapping[str, float] | None = None
    trust: Mapping[str, Any] | None = None
    hooks: Mapping[str, Mapping[str, Any]] | None = None
    ended_early: str | None = None
    tasks: Mapping[str, Any] | None = None
    targets: Mapping[str, Any] | None = None
    spans: Mapping[str, Any] | None = None
    captions: Mapping[str, Any] | None = None
    patches: Mapping[str, Any] | None = None
    clips: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> Summary | None:
        """Return the summary in a run's folder; None: there is none with all keys, or it has no score."""
        try:
            plain = files.read_json(folder / "summary.json")
            groups: dict[str, Any] = {
                name: group(**{field.name: plain[field.name] for field in fields(group)})
                for name, group in (("quality", Quality), ("costs", Costs))
            }
            own = {field.name: plain[field.name] for field in fields(cls) if field.name not in groups}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None if None in (plain["accuracy"], plain["loss"]) else cls(**groups, **own)

    def to_dict(self) -> dict[str, Any]:
        """Return names and values, in one level."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**vars(own.pop("quality")), **vars(own.pop("costs")), **own}


def count_distinct_rows(clients: Iterable[Mapping[str, Any]]) -> int | None:
    """Count the distinct training examples of all clients in the lines of clients.jsonl; None: a line lacks them."""
    used: dict[int, int] = {}
    for line in clients:
        if line.get("rejected"):
            continue
        if not line.get("used"):
            return None
        used[line["client"]] = max(used.get(line["client"], 0), line["used"])
    return sum(used.values()) or None


def show(summary: Summary, folder: Path, console: Console) -> None:
    """Print the outcome in a sentence, the most important numbers, and the next commands for the run."""
    from fedpeft.reporting.next_commands import say_next

    rows = [
        *_list_privacy_lines(summary.costs),
        *_list_result_lines(summary),
        *_list_baseline_lines(summary),
        *_list_cost_lines(summary),
        *_list_attack_lines(summary),
    ]
    if summary.peak_memory_bytes:
        rows.append(("peak memory, all processes", format_bytes(summary.peak_memory_bytes)))
    outcome = describe_outcome(summary.to_dict(), TEST_ROWS)
    if outcome:
        console.print(f"[bold]{escape(outcome)}[/]", highlight=False)
    title = "summary of a preview on a sample of the examples" if summary.sampled else "summary"
    console.print(create_summary_table(title, [*rows, ("files", escape(str(folder)))]))
    say_next(folder, console)


Line = tuple[str, str]
"""A name and a value."""


def _format_number(name: str, value: float | None, digits: int = 4) -> list[Line]:
    return [] if value is None or math.isnan(value) else [(name, f"{value:.{digits}f}")]


def _list_privacy_lines(costs: Costs) -> list[Line]:
    """Return lines about the spent privacy budget."""
    if costs.privacy is None or costs.epsilon is None or costs.epsilon_median is None or costs.dp_delta is None:
        return []
    spent = f"{costs.epsilon:.2f} (median {costs.epsilon_median:.2f}), delta {costs.dp_delta:.2g}"
    unit, to_all = costs.privacy["unit"], costs.privacy.get("epsilon_models")
    if to_all is None:
        return [(f"[bold]epsilon[/] per {unit}", f"[bold]{spent}[/]")]
    rdp, prv = costs.privacy["epsilon_gaussian_rdp"], costs.privacy["epsilon_gaussian_prv"]
    return [
        (f"[bold]epsilon[/] per {unit}, against the server", f"[bold]{spent}[/]"),
        ("against those who see released models", f"{to_all:.2f}"),
        ("against the server, were noise Gaussian", f"{rdp:.2f} by RDP, {prv:.2f} by PRV"),
    ]


def _list_result_lines(summary: Summary) -> list[Line]:
    quality = summary.quality
    if math.isnan(quality.accuracy):
        told = "a server takes --eval-data FILE or, without --privacy, --held-out 0.2"
        return [(quality.metric, f"unknown: no examples to evaluate on; {told}")]
    tested = quality.accuracy_of == TEST_ROWS
    metric = quality.metric.replace("_", " ")
    name, of = f"test {metric}" if tested else metric, quality.accuracy_of
    value, digits = (quality.perplexity, 3) if quality.perplexity is not None else (quality.accuracy, 4)
    tokens = "next-token accuracy, " if quality.perplexity is not None else ""  # the others are no perplexities
    return [
        (f"[bold]{name}[/] ({'saved adapter, fp32' if tested else of})", f"[bold]{format_measure(value, digits)}[/]"),
        *_format_number(f"{tokens}worst tenth of the clients", quality.worst_accuracy),
        *_format_number(f"{tokens}global model alone, test rows", quality.shared_accuracy),
    ]


def _list_baseline_lines(summary: Summary) -> list[Line]:
    """Return lines with baselines and further results."""
    from fedpeft.wiring.measurements import trust_lines  # these would delay --help
    from fedpeft.wiring.section_lines import section_lines

    quality = summary.quality
    rounds = summary.costs.rounds
    kept = (
        f"round {quality.kept_round} of {rounds}" if quality.kept_round else "the start (no round was clearly better)"
    )
    judged = "accuracy" if quality.metric == "perplexity" else quality.metric.replace("_", " ")

    def choose_measure(accuracy: float | None, loss: float | None) -> float | None:
        return accuracy if quality.perplexity is None or loss is None else compute_perplexity(loss)

    return [
        *_format_number("frozen base, linear probe", quality.baseline_accuracy),
        *_format_number("private probe: one release, no training", quality.private_probe_accuracy),
        *_format_number(f"same adapter, clients alone (mean {judged})", quality.alone_accuracy),
        *_format_number(
            "same adapter on the pooled data", choose_measure(quality.centralised_accuracy, quality.centralised_loss)
        ),
        *(
            [
                ("kept state", kept),
                *_format_number(
                    f"after the last round, {rounds}", choose_measure(quality.last_accuracy, quality.last_loss)
                ),
            ]
            if quality.kept_round != rounds
            else []
        ),
        *_format_number("test loss" if quality.accuracy_of == TEST_ROWS else "loss", quality.loss),
        *_list_forgetting_lines(quality.forgetting),
        *_list_retrieval_lines(quality.retrieval),
        *trust_lines({"trust": summary.trust}).items(),
        *((escape(name), escape(value)) for name, value in section_lines(summary.hooks).items()),
        *_list_task_lines(summary.tasks),
        *(
            (escape(name), escape(value))
            for name, value in list_target_lines(summary.targets, _get_test_accuracy(quality))
        ),
        *_format_number("F1 of spans, test rows (seqeval)", (summary.spans or {}).get("f1")),
        *_format_number("mean IoU of patches, test rows", (summary.patches or {}).get("mean_iou")),
        *_format_number(
            "mean IoU of a probe on frozen patches", ((summary.patches or {}).get("frozen") or {}).get("mean_iou")
        ),
        *_format_number("accuracy of a probe on one frame", (summary.clips or {}).get("one_frame")),
        *(
            (f"captions, test rows: {name}", f"{value:.4f}")
            for name, value in _rename_caption_scores(summary.captions).items()
        ),
    ]


def _rename_caption_scores(found: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the scores of captions, by their names on the console."""
    names = {"exact_match": "exact match", "rouge_l": "ROUGE-L"}
    return {names.get(name, name): value for name, value in (found or {}).items() if name != "rows"}


def _list_task_lines(found: Mapping[str, Any] | None) -> list[Line]:
    """Return lines about a sequence of tasks; none for a run that ended before its last task."""
    lines = []
    for key, what in (("accuracy", "all classes compete"), ("accuracy_known_task", "task known")):
        measured = (found or {}).get(key) or {}
        if "average" in measured:
            value = f"{measured['average']:.4f}, forgotten {measured['forgetting']:.4f}"
            lines.append((f"mean over tasks, validation rows, {what}", value))
    return lines


def _get_test_accuracy(quality: Quality) -> float:
    """Return the accuracy on the test set, also if `accuracy` is that of clients' own models on their own examples."""
    if quality.accuracy_of != TEST_ROWS and quality.shared_accuracy is not None:
        return quality.shared_accuracy
    return quality.accuracy


def _list_forgetting_lines(found: Mapping[str, Any] | None) -> list[Line]:
    if not found:
        return []
    return [(f"second task, {found['dataset']}: {found['measure']}", f"{found['before']:.4f} -> {found['after']:.4f}")]


def _list_retrieval_lines(retrieval: Mapping[str, Any] | None) -> list[Line]:
    """Return lines about retrieved pairs."""
    if not retrieval:
        return []
    told = {"": retrieval, "the other way, ": retrieval["reverse"]}
    told |= {f"{name}, ": retrieval[name] for name in ("frozen", "words") if name in retrieval}
    return [
        (f"{of}mean reciprocal rank / recall at 1, 5, 10", " / ".join(f"{t[key]:.4f}" for key in RANKED))
        for of, t in told.items()
    ]


RANKED = ("mrr", "recall_at_1", "recall_at_5", "recall_at_10")
"""The scores of pairs that the console shows."""


def _list_cost_lines(summary: Summary) -> list[Line]:
    costs, sent = summary.costs, summary.costs.uplink_bytes_per_parameter
    rows = [
        ("uplink / downlink", f"{format_bytes(costs.uplink_bytes)} / {format_bytes(costs.downlink_bytes)}"),
        ("of it before round 1", format_bytes(costs.prepare_bytes)),
        ("bytes per parameter and update", f"{sent:.3f}" if sent is not None else "no update was sent"),
    ]
    if summary.wire_received_bytes is not None and summary.wire_sent_bytes is not None:
        rows.append(
            ("on the wire", f"{format_bytes(summary.wire_received_bytes)} / {format_bytes(summary.wire_sent_bytes)}")
        )
    if summary.seconds is not None:
        rows.append(
            (
                "time since it was resumed" if summary.resumed else "time",
                f"{format_duration(summary.seconds)}, {format_duration(costs.seconds_per_round)} per round",
            )
        )
    if costs.rejected:
        of = costs.rejected_by_client
        rows.append(("updates left out", f"{costs.rejected}{f', of {len(of)} clients' if of else ''}"))
    if summary.distinct_rows:
        rows.append(("distinct examples trained on", f"{summary.distinct_rows:,}"))
    return rows


def _list_attack_lines(summary: Summary) -> list[Line]:
    quality = summary.quality
    rows = _format_number("membership inference, area under the curve", quality.membership_auc, 3)
    if quality.audit_epsilon is not None:
        found = f"epsilon at least {quality.audit_epsilon:.2f} of {quality.audit_claimed:.2f} claimed"
        rows.append(("canary audit of its mechanism", found))
    return rows

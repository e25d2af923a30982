"""What someone who gets an adapter should know of how it was made."""

from __future__ import annotations

from fedpeft.run.console import size
from fedpeft.run.finished import FinishedRun


def loading(run: FinishedRun, whole: bool) -> str:
    """How others load it."""
    auto = "AutoModel" if run.labels is not None else "AutoModelForCausalLM"
    if whole:
        return f'`transformers.{auto}.from_pretrained("model")`'
    if (run.files / "method.json").is_file():
        return '`python -m fedpeft.predict RUN "text"`; the `peft` library does not have this method'
    few_bits = run.method.base_precision
    beside = f"; it was trained beside a base in {few_bits}" if few_bits else ""
    return f'`peft.PeftModel.from_pretrained({auto}.from_pretrained(BASE), "adapter")`{beside}'


def card(run: FinishedRun, merged: bool) -> str:
    """The card of a finished run, as Markdown."""
    summary, config, method = run.summary, run.config, run.method
    whole = merged or method.whole_model
    classes = run.labels is not None
    measure, digits = ("accuracy", 4) if classes else ("perplexity", 3)
    quality = summary.get(measure)
    partition = summary.get("partition") or {}
    skew = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in partition.items() if value is not None)
    epsilon = summary.get("epsilon")
    probe = summary.get("baseline_accuracy")
    traffic = f"{size(summary['uplink_bytes'])} up and {size(summary['downlink_bytes'])} down"
    rows = {
        "base model": run.model_directory.name if config.model == "auto" else config.model,
        "method": f"`{config.peft}`, {summary['parameters']:,} trained parameters" + (", merged" if merged else ""),
        "data": f"{config.dataset}, {summary['clients']} clients, `{config.partition}`",
        "partition": skew or None,
        "federation": f"{summary['rounds']} rounds of {summary['cohort']} clients, `{config.strategy}`",
        "seed": config.seed,
        "bytes": f"{traffic} in all (`{config.codec}`)",
        "privacy": "none: the updates were not noised, and the adapter may tell of the rows it was trained on"
        if epsilon is None
        else f"epsilon {epsilon:.3g} at delta {summary['dp_delta']:.1g}",
        measure: "not measured: the server had no rows"
        if quality is None
        else f"{quality:.{digits}f} ({summary.get('accuracy_of') or 'test rows'})",
        "frozen base, linear probe": None if probe is None else f"{probe:.4f}",
        "calibration error": _calibration(summary),
        "versions": ", ".join(f"{name} {number}" for name, number in summary["versions"].items()),
        "to load it": loading(run, whole),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    title = "Model" if whole else "Adapter"
    pooled = "The class is that of `head.safetensors` on the mean of the last hidden states.\n" if classes else ""
    return "\n".join(
        [
            f"# {title} from federated fine-tuning",
            "",
            "Made by fedpeft: many clients trained it on rows that stayed with them.",
            "",
            "| | |",
            "|---|---|",
            *lines,
            "",
            pooled,
        ]
    )


def _calibration(summary: dict[str, object]) -> str | None:
    before, after = summary.get("calibration_error"), summary.get("calibration_error_scaled")
    if not isinstance(before, float) or not isinstance(after, float):
        return None
    return f"{before:.4f}; {after:.4f} with logits divided by {summary['temperature']:.3g}"

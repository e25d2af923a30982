"""The model card, which describes how an adapter was trained and how to load it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.data.model_config import load_model_config
from fedpeft.data.partition import PartitionStatistics
from fedpeft.models.abilities import ComparesExamples, DescribesImages
from fedpeft.models.readout import ALL_BLOCKS
from fedpeft.parts.families import DATASETS
from fedpeft.parts.plugin_files import hash_own_code
from fedpeft.reporting.console import format_bytes, format_measure
from fedpeft.reporting.exports.transformers_folder import create_processor
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.reporting.phrases import count_of
from fedpeft.reporting.run_folder import SERVERS_OPTIONS
from fedpeft.reporting.target_lines import list_card_lines
from fedpeft.wiring.measurements import trust_lines
from fedpeft.wiring.section_lines import section_lines


def describe_loading(run: FinishedRun, whole: bool, gguf: bool = False) -> str:
    """Return how others load the export, with what they must import before; `gguf` exports with llama.cpp."""
    if gguf:
        beside = "" if whole else _describe_base(run)
        beside += beside and ", whose values `export --gguf --gguf-base` writes"
        return f"`llama-cli -m {'model.gguf' if whole else 'BASE.gguf --lora adapter.gguf'}`{beside}"
    config = type(load_model_config(run.model_directory))
    told = _describe_loading(run, whole)
    if not hash_own_code(config) or told.startswith("`fedpeft"):
        return told
    file = Path(sys.modules[config.__module__].__file__ or config.__module__).name
    return f"{told}; before that import {file}, which registers {config.__name__}"


def _describe_loading(run: FinishedRun, whole: bool) -> str:
    if isinstance(run.task, ComparesExamples) and run.is_image_model:
        return "`fedpeft.open_run(RUN).model()`: two towers, which the `peft` library alone does not put together"
    if isinstance(run.task, DescribesImages):
        return "`fedpeft predict RUN IMAGE`, or `fedpeft.open_run(RUN).model()`"
    if whole:
        return _describe_whole_model(run)
    if (run.files / "method.json").is_file():
        asked = "IMAGE" if run.is_image_model else '"text"'
        return f"`fedpeft predict RUN {asked}`; the `peft` library does not have this method"
    held, beside = _format_quantization_argument(run), _describe_base(run)
    if beside and not held:
        beside += ", which transformers can't rebuild: `fedpeft.open_run(RUN).model()` does"
    auto = "AutoModelForSeq2SeqLM" if run.task.translates else "AutoModelForCausalLM"
    if run.labels is not None or isinstance(run.task, ComparesExamples):
        auto = "AutoModel"
    base = f"{auto}.from_pretrained(BASE, dtype=torch.float32{held})"
    return f'`peft.PeftModel.from_pretrained({base}, "adapter")`{beside}'


def _describe_whole_model(run: FinishedRun) -> str:
    if run.task.translates:
        return "`transformers.AutoModelForSeq2SeqLM.from_pretrained(FOLDER)`"
    if run.labels is None:
        return '`transformers.pipeline("text-generation", FOLDER)`'
    if not run.is_image_model:
        return (
            '`transformers.pipeline("text-classification", FOLDER, trust_remote_code=True)(TEXT, truncation=True)`, '
            "after a look into `modeling_mean_pooled.py`, which it runs"
        )
    if create_processor(run) is None:
        return "`transformers.AutoModelForImageClassification.from_pretrained(FOLDER, trust_remote_code=True)`"
    return (
        '`transformers.pipeline("image-classification", FOLDER, trust_remote_code=True)(IMAGE)`, after a look '
        "into `modeling_mean_pooled.py`, `image_processing_squares.py` and `square_pictures.py`, which it runs"
    )


def _describe_base(run: FinishedRun) -> str:
    """Return a clause about the base that an adapter was trained with; empty: the unchanged base."""
    few_bits = run.method.base_precision
    return few_bits and f"; it was trained and scored beside a base in {few_bits}"


def _format_quantization_argument(run: FinishedRun) -> str:
    """Return the argument by which transformers quantizes the base as fedpeft does; empty: none does."""
    if run.method.base_precision != "nf4":
        return ""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    known = MODEL_MAPPING.get(type(load_model_config(run.model_directory)), None)
    if getattr(known, "_keep_in_fp32_modules", True):  # here all are in few bits
        return ""
    settings = 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True'
    return f", quantization_config=BitsAndBytesConfig({settings})"


def format_front_matter(run: FinishedRun, whole: bool, gguf: bool = False) -> str:
    """Return the part of the card that a hub parses, as YAML between lines of dashes."""
    from huggingface_hub import ModelCardData

    data: Any = ModelCardData(
        base_model=_find_hub_name(run.origin.name),
        license=run.origin.license or None,
        library_name=None if gguf else _find_library(run, whole),
        pipeline_tag=_find_pipeline(run),
        tags=["fedpeft", "federated-learning", run.method.name],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _find_library(run: FinishedRun, whole: bool) -> str:
    """Return the library that loads the files."""
    if whole:
        return "transformers"
    return "fedpeft" if (run.files / "method.json").is_file() else "peft"


def _find_pipeline(run: FinishedRun) -> str:
    """Return the hub's name for what the model does."""
    if isinstance(run.task, ComparesExamples):
        return "feature-extraction"
    if isinstance(run.task, DescribesImages):
        return "image-to-text"
    if run.labels is not None:
        return "image-classification" if run.is_image_model else "text-classification"
    return "text2text-generation" if run.task.translates else "text-generation"


def _find_hub_name(name: str) -> str | None:
    """Return the name of a base if a hub could have it; None: the hub would reject a card with that name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def format_card(run: FinishedRun, merged: bool, gguf: bool = False) -> str:
    """Return the card of a finished run, as Markdown.

    Args:
        run: the finished run.
        merged: whether the export contains no adapter any more.
        gguf: whether the export is GGUF.
    """
    summary, config, method = run.summary, run.config, run.method
    whole = merged or method.whole_model
    measure = run.task.metric
    field, digits = ("perplexity", 3) if measure == "perplexity" else ("accuracy", 4)
    quality = summary.get(field)
    partition = summary.get("partition") or {}
    probe = summary.get("baseline_accuracy")
    traffic = f"{format_bytes(summary['uplink_bytes'])} up and {format_bytes(summary['downlink_bytes'])} down"
    rows = {
        "base model": run.origin.name,
        "method": f"`{config.peft}`, {summary['parameters']:,} trained parameters" + (", merged" if merged else ""),
        "data": f"{DATASETS.replace_paths(config.dataset, name_of)}, {count_of(summary['clients'], 'client')}"
        + (f", `{config.partition}`" if partition else ""),
        "partition": str(PartitionStatistics(**partition)) if partition else None,
        "federation": f"{count_of(summary['rounds'], 'round')} of {count_of(summary['cohort'], 'client')}, "
        f"`{config.strategy}`",
        "seed": config.seed,
        "bytes": f"{traffic} in all (`{config.codec}`)",
        "privacy": describe_privacy(summary),
        measure.replace("_", " "): "not measured: the server had no examples"
        if quality is None
        else f"{format_measure(quality, digits)} ({summary.get('accuracy_of') or 'test rows'})",
        "frozen base, linear probe": None if probe is None else f"{probe:.4f}",
        **list_card_lines(summary.get("targets")),
        "calibration error": _describe_calibration(summary, whole),
        **trust_lines(summary),
        **section_lines(summary.get("hooks")),
        "versions": ", ".join(f"{name} {number}" for name, number in summary["versions"].items()),
        "to load it": describe_loading(run, whole, gguf),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    title = "Model" if whole else "Adapter"
    return "\n".join(
        [
            format_front_matter(run, whole, gguf),
            f"# {title} from federated fine-tuning",
            "",
            f"Made by fedpeft: {_describe_origin(run)}",
            "",
            "| | |",
            "|---|---|",
            *lines,
            "",
            _describe_readout(run, "`modeling_mean_pooled.py`, a linear layer" if whole else "`head.safetensors`"),
        ]
    )


def _describe_origin(run: FinishedRun) -> str:
    """Return a sentence on who trained the model: clients with examples of their own, or shares of one dataset."""
    if (run.folder / SERVERS_OPTIONS).exists():
        return "the clients trained it on examples that stayed with them."
    return "its clients were shares of one dataset, as in a simulation."


def describe_privacy(summary: Mapping[str, Any]) -> str:
    """Return what a run's epsilon protects: unit, mechanism and delta; numbers are rounded up, never down.

    Args:
        summary: the content of summary.json.
    """
    if summary.get("epsilon") is None:
        return "none: the updates were not noised, and the adapter may reveal its training examples"
    section = summary.get("privacy") or {}
    cost = f"epsilon {round_up(summary['epsilon'], 3)} at delta {round_up(summary['dp_delta'], 2)}"
    unit = f" per {section['unit']}" if "unit" in section else ""
    name = f", by `{section['mechanism']}`" if "mechanism" in section else ""
    test = "; test noise of a known seed, which protects nothing" if section.get("test_noise") else ""
    left = "; `privacy.not_covered` in summary.json lists what no epsilon covers" if section.get("not_covered") else ""
    return f"{cost}{unit}{name}{test}{left}"


def round_up(value: float, digits: int) -> str:
    """Return a positive number with so many significant digits, and never less than the number itself."""
    if not value:
        return "0"
    step = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    short = f"{value:.{digits}g}"
    return short if float(short) >= value else f"{float(short) + step:.{digits}g}"


def _describe_readout(run: FinishedRun, head: str) -> str:
    """Return a sentence on what reads the model's last hidden states; empty for a language model."""
    if isinstance(run.task, ComparesExamples):
        return "Both sides are the mean of the last hidden states, and compared by their cosine.\n"
    if isinstance(run.task, DescribesImages):
        return (
            "`head.safetensors` leads from the patches' last hidden states of the frozen image encoder to embeddings, "
            "which the language model with the adapter reads before a caption.\n"
        )
    said = {
        "numbers": f"The number ({', '.join(run.labels or [])}, in its own unit) is that of",
        "labels": "A label is predicted if its logit is above 0, by",
    }.get(run.task.targets, "The class is that of")
    blocks = run.method.reads == ALL_BLOCKS
    states = "hidden states of all blocks, each brought to length 1" if blocks else "last hidden states"
    if run.labels is None:
        return ""
    return f"{said} {head} on the mean of the {states}.\n{_describe_image_input(run) if run.is_image_model else ''}"


def _describe_image_input(run: FinishedRun) -> str:
    """Return how an image becomes the model's input."""
    fed = create_processor(run)
    if fed is None:
        return ""
    side, pixels = fed.side, fed.size["height"]
    return (
        f"\nAn image is rotated as its camera recorded it, scaled to a square of {side} pixels per side (its middle), "
        f"brought to {pixels} x {pixels} pixels, and normalized as for ImageNet: "
        f"`model_input(square(IMAGE, {side})[None]"
        f", {pixels})` of `square_pictures.py` (in fedpeft: `fedpeft.data.square_pictures`). `transformers.pipeline` "
        "turns gray images of 16 bits white; divide them by 257 first, which gives 8 bits.\n"
    )


def name_of(path: str) -> str:
    """Return the last part of a path on this machine; other names stay unchanged."""
    return Path(path).name if path.startswith((".", "~")) or Path(path).is_absolute() else path


def _describe_calibration(summary: dict[str, object], whole: bool) -> str | None:
    before, after = summary.get("calibration_error"), summary.get("calibration_error_scaled")
    if not isinstance(before, float) or not isinstance(after, float):
        return None
    divided = f"{before:.4f}; {after:.4f} with logits divided by {summary['temperature']:.3g}"
    return f"{divided}, as this head's are" if whole else divided

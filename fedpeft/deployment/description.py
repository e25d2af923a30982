"""A server's description of its federation, which a client reads first: the task, and the format of its examples."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Final

from fedpeft.data.client_rows import LARGEST, MOST_FRAMES, MOST_PIXELS, SMALLEST
from fedpeft.data.datasets.clients import CONVERSATIONS, Clients
from fedpeft.data.image_companions import TASKS as COMPANIONS
from fedpeft.data.prompt_templates import CHAT, OF_COLUMNS, compute_fingerprint
from fedpeft.data.task_sequence import COMPETE, TaskSchedule, TaskSequence
from fedpeft.deployment.compared_parts import check_parts
from fedpeft.deployment.options import EdgeOptions
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import ConfigError, RunError
from fedpeft.parts.families import TASKS
from fedpeft.parts.spec import parse_spec

TOLD: Final = {
    "classification": (2, 10**6),
    "multi_label": (1, 10**6),
    "regression": (1, 1),
    "causal_lm": (0, 0),
    "seq2seq": (0, 0),
    "instruction": (0, 0),
    "dpo": (0, 0),
    "token_labels": (2, 10**6),
    "towers": (0, 0),
    "captions": (0, 0),
    "patch_labels": (2, 255),
}
"""Tasks that a server may describe, with the fewest and the most names that go with each."""

MOST_HELD_OUT = 0.5
"""The largest share of its examples that a client is evaluated on."""

LARGEST_ROUND = 1_000_000
"""The most rounds of a task."""

_FILE = re.compile(r"[0-9a-f]{64}", re.ASCII)


def describe_template(form: Clients) -> str:
    """Return the server's prompt template for its clients: a name, or the SHA-256 of a file; empty: none.

    Raises:
        DataError: the file can't be read.
    """
    if form.learns not in CONVERSATIONS:
        return ""
    name = form.template or CHAT
    return name if name in OF_COLUMNS else compute_fingerprint(name)


def describe_tasks(tasks: TaskSequence | None) -> str:
    """Return the sequence of tasks for clients as JSON; empty: there is one task."""
    if tasks is None:
        return ""
    schedule = tasks.schedule
    fields = {
        "classes": tasks.classes,
        "every": schedule.every,
        "late": schedule.late,
        "compete": tasks.compete,
    }
    return json.dumps(fields, sort_keys=True)


def parse_tasks(told: v2.Description) -> TaskSequence | None:
    """Return the sequence of tasks that a server describes; None: there is one task.

    Each class belongs to one task, so that a client's examples name theirs.

    Raises:
        RunError: no server of this version describes such tasks, the task is not a classification, or the server holds
            out examples of its clients.
    """
    if not told.tasks:
        return None
    if (kind := told.task.partition("(")[0]) != "classification":
        raise RunError(
            f"FP5655 the server describes a sequence of tasks for {kind}; legal is classification, where the class of "
            "an example tells its task"
        )
    if told.held_out:
        raise RunError(
            f"FP5557 the server holds out {told.held_out:g} of each client's examples, but the tasks of continual "
            "learning are scored on the server's examples"
        )
    try:
        fields = json.loads(told.tasks)
        classes = tuple(map(tuple, fields["classes"]))
        of_all = list(chain.from_iterable(classes))
        legal = (
            set(fields) == {"classes", "every", "late", "compete"}
            and set(map(type, (*of_all, fields["every"], fields["late"]))) == {int}
            and all(classes)
            and sorted(of_all) == list(range(len(told.labels)))
            and len(classes) > 1
            and 0 <= fields["late"] < fields["every"] <= LARGEST_ROUND
            and fields["compete"] in COMPETE
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        legal = False
    if not legal:
        raise RunError(
            f"FP5556 the server describes the tasks {told.tasks!r:.100}; legal are at least two tasks with classes "
            f"0 to {len(told.labels) - 1}, each in one task, and rounds per task"
        )
    names = tuple(", ".join(told.labels[c] for c in group) for group in classes)
    schedule = TaskSchedule(len(classes), fields["every"], fields["late"])
    return TaskSequence(names, classes, schedule, fields["compete"])


def check_description(told: v2.Description) -> None:
    """Refuse a description that no server of this version gives.

    Raises:
        RunError: names the field, what was given, and what is legal.
    """
    if not 0 <= told.held_out <= MOST_HELD_OUT:
        raise RunError(
            f"FP5061 the server holds out {told.held_out:g} of each client's examples; legal is a share from 0 "
            f"to {MOST_HELD_OUT}"
        )
    names = tuple(told.labels)
    kind = told.task.partition("(")[0]
    least, most = TOLD.get(kind, (1, 0))
    if not least <= len(names) <= most:
        raise RunError(
            f"FP5241 the server describes the task {told.task!r:.40} with {len(names)} classes; legal are "
            "classification, token_labels and patch_labels with at least two, multi_label with at least one, "
            "regression with one name, and causal_lm, seq2seq, instruction, dpo, towers and captions with none"
        )
    try:
        TASKS.build(told.task)
    except ConfigError as error:
        raise RunError(f"FP5063 the server describes a task that this version can't read: {error}") from None
    if told.task != kind and not parse_spec(told.task).settings:  # a task without settings has only one spelling
        raise RunError(f"FP5064 the server describes the task {told.task!r:.100}; this version spells it {kind}")
    if len(set(names)) < len(names):
        raise RunError("FP5065 the server names a class twice; ask whoever runs the server to correct its --labels")
    check_images(told)
    if bool(told.template) != (kind in CONVERSATIONS) or not (
        told.template in ("", *OF_COLUMNS) or _FILE.fullmatch(told.template)
    ):
        raise RunError(
            f"FP5067 the server describes the prompt template {told.template!r:.80} for the task {kind}; legal are "
            f"{', '.join(OF_COLUMNS)} or the SHA-256 of a file, for {' and '.join(CONVERSATIONS)} alone"
        )
    parse_tasks(told)
    check_parts(told.parts)


def check_images(told: v2.Description) -> None:
    """Refuse images or clips of a size, or for a task, that no server of this version describes.

    Raises:
        RunError: names the size and what is legal.
    """
    kind = told.task.partition("(")[0]
    if not _is_legal_side(told.side, kind):
        raise RunError(
            f"FP5066 the server describes images of {told.side} pixels per side for the task {kind}; legal are "
            f"{SMALLEST} to {LARGEST}, of classes, labels or numbers, with texts or with masks"
        )
    if told.frames and not (told.frames <= MOST_FRAMES and told.side and kind not in COMPANIONS):
        raise RunError(
            f"FP5456 the server describes clips of {told.frames} frames of {told.side} pixels for the task {kind}; "
            f"legal are 1 to {MOST_FRAMES} frames of images with classes, labels or numbers"
        )
    if (pixels := told.frames * told.side**2) > MOST_PIXELS:
        raise RunError(
            f"FP5781 the server describes clips of {told.frames} frames of {told.side} pixels per side, which are "
            f"{pixels:,} pixels per example; legal are {MOST_PIXELS:,} at most: ask whoever runs the server for fewer "
            "--frames or a smaller --side"
        )


def _is_legal_side(side: int, kind: str) -> bool:
    """Return whether a task may have images of `side` pixels, or if it is 0, no images."""
    if kind in COMPANIONS:
        return SMALLEST <= side <= LARGEST
    return not side or (SMALLEST <= side <= LARGEST and TOLD[kind][0] > 0 and kind != "token_labels")


def build_form(told: v2.Description, options: EdgeOptions) -> Clients:
    """Return the format of a client's examples from a checked description, with the client's own column names.

    Raises:
        ConfigError: the client's template is not the server's.
        DataError: it can't be read.
    """
    return Clients(
        task=told.task,
        text=options.text_column or told.text_column,
        label=options.label_column or told.label_column,
        side=told.side,
        frames=told.frames,
        template=_find_own_template(told.template, options.template),
    )


def _find_own_template(told: str, own: str) -> str | None:
    """Return the prompt template here: the server's name, or the file that has the server's digest.

    Raises:
        ConfigError: the client's template is not the server's.
    """
    if not _FILE.fullmatch(told):
        if own:
            raise ConfigError(
                f"FP1115 --template {own} is a file, and the federation "
                + (f"formats conversations with the template {told}" if told else "has no conversations")
                + "; leave --template out"
            )
        return told or None
    if not own:
        raise ConfigError(
            "FP1116 the federation formats conversations with its own template (a file with the digest "
            f"{told[:12]}); ask whoever runs the server for it, and join with --template FILE.jinja"
        )
    file = str(Path(own).expanduser().absolute())
    if (digest := compute_fingerprint(file)) != told:
        raise ConfigError(
            f"FP1117 the template {own} (digest {digest[:12]}) is not the server's (digest {told[:12]}): "
            "conversations would be formatted differently; ask whoever runs the server for its file"
        )
    return file

"""A server that sends what it likes, against real clients: each field of its messages, at values out of all bounds.

Fields are read off the messages themselves, so that a new one is attacked from its first day. Whatever comes, the
client answers with a report, or refuses the federation with one sentence; and then it still does honest work.
"""

from __future__ import annotations

import dataclasses
import random
import tomllib
import typing

import pytest
import tomli_w

from fedpeft.communication.codec import parse_codec
from fedpeft.communication.messages import PAYLOADS, Instruction, Report
from fedpeft.deployment.client.edge import EdgeClient
from fedpeft.deployment.options import EdgeOptions
from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import FedpeftError
from fedpeft.wiring.config import RunConfig
from tests.attacks.scale import SEED, scaled
from tests.conftest import SilentObserver
from tests.here import Federation

WHOLE = (-(2**63), -1, 0, 1, 3, 2**31 - 1, 2**31, 2**62)
NUMBERS = (float("nan"), float("inf"), float("-inf"), -1.0, -0.0, 5e-324, 1e-300, 1e-12, 1.0, 1e38, 1e300, 1.7e308)
TEXTS = ("", "trian", "fp32", "nf4", "../../etc/passwd", "\0", "\ud800", "a" * 5000, "[bold]", "None")
POSITIONS = ((), (0,), (-1,), (0, 0), (10**9,), (2**63,), tuple(range(10_000)))


def values(hint, honest):
    """Values of a field's type that its honest value is not."""
    origin = typing.get_origin(hint)
    if hint is bool:
        return (not honest,)
    if hint is int:
        return WHOLE
    if hint is float:
        return NUMBERS
    if origin is tuple:
        return POSITIONS
    if hint is bytes:
        return (b"", b"\0", b"\xff" * 64, honest[:-1], honest[: len(honest) // 2], honest * 2, bytes(len(honest)),
                parse_codec("fp32").encode({}, shapes={}) if not honest else honest[::-1])  # fmt: skip
    return TEXTS


def fields_of(instruction):
    hints = typing.get_type_hints(Instruction)
    return {f.name: values(hints[f.name], getattr(instruction, f.name)) for f in dataclasses.fields(Instruction)}


SHARED = {"clients": 3, "local_work": "epochs(1.0)", "optimizer": "sgd"}


@pytest.fixture(scope="module", params=["", "dp_sgd(noise_multiplier=1.5)", "local_dp(noise_multiplier=1.5)",
                                        "distributed_dp(noise_multiplier=1.5, rows=200)"],
                ids=["plain", "dp_sgd", "local_dp", "distributed_dp"])  # fmt: skip
def asked(request, tmp_path_factory):
    """Yield a task of an honest server and the client that it is for."""
    given = SHARED if "distributed" in request.param else {"clients": 1}
    made = Federation(tmp_path_factory.mktemp("asked"), SilentObserver(), **given, rounds=1, privacy=request.param)
    made.run()
    yield next(i for i in made.server.direct.asked if i.kind == "train"), made.server.edges[0]
    made.server.edges[0].close()


def harmless(edge, instruction):
    """Return the client's report, after checking that it contains no traceback."""
    report = edge.handle(instruction)
    assert isinstance(report, Report), instruction
    assert "\n" not in report.error, instruction
    assert "Traceback" not in report.error, instruction
    return report


@pytest.mark.long
def test_every_field_of_an_instruction(asked):
    honest, edge = asked
    tried = refused = 0
    for name, tries in fields_of(honest).items():
        for value in tries:
            report = harmless(edge, dataclasses.replace(honest, **{name: value}))
            tried, refused = tried + 1, refused + bool(report.error)
    source = random.Random(SEED)
    legal = fields_of(honest)
    for _ in range(scaled(500)):
        chosen = source.sample(sorted(legal), source.randrange(2, 5))
        report = harmless(edge, dataclasses.replace(honest, **{name: source.choice(legal[name]) for name in chosen}))
        tried, refused = tried + 1, refused + bool(report.error)
    print(f"{tried} instructions, {refused} of them refused")
    assert refused > tried / 4, "next to nothing was refused: the attack is none"
    summed = honest.step > 0  # then another round takes the steps before, and there is the answer of before
    answer = edge.handle(honest if summed else dataclasses.replace(honest, round=honest.round + 1))
    assert answer.payload, answer.error


# ------------------------------------------------------------------------------------------- the settings that it names

EXTREME = (0, 5e-324, 1e-300, 1e-12, 1e12, 1e300, 1.7e308, "nan", "1e999", 10**400, -1)
MECHANISMS = [
    f"{mechanism}({setting}={value})"
    for mechanism in ("dp_sgd", "local_dp", "user_dp")
    for setting in ("noise_multiplier", "epsilon", "noise_multiplier=1, dp_delta", "noise_multiplier=1, clip",
                    "epsilon=3, dp_delta")
    for value in EXTREME
] + [
    f"distributed_dp({setting}={value})"
    for setting in ("rows=200, noise_multiplier", "rows=200, epsilon", "rows=200, noise_multiplier=1, dp_delta",
                    "rows=200, noise_multiplier=1, clip", "epsilon=3, rows", "epsilon=3, unit=clients, dropouts",
                    "epsilon=3, rows=200, collude", "epsilon=3, rows=200, mask_neighbours", "epsilon=3, rows=200, bits")
    for value in EXTREME
]  # fmt: skip


def told_otherwise(description, name, value):
    """Return the description with another value of one setting; None if no message can carry it."""
    changed = v2.Description.FromString(description.SerializeToString())
    try:
        changed.config = tomli_w.dumps(tomllib.loads(description.config) | {name: value})
    except (TypeError, ValueError):  # nothing that TOML, or a wire of text, could carry
        return None
    return changed


def joins(made, description, folder):
    """Return the client that joins, or None if it refuses in one sentence."""
    folder.mkdir()
    try:
        edge = EdgeClient(description, made.folder / "0.jsonl", folder, folder / "ledgers", SilentObserver(),
                    EdgeOptions(device="cpu", threads=1))  # fmt: skip
        edge.create_registration().SerializeToString()
        if edge.protection is not None:
            edge.protection.describe()
            edge.protection.warnings()
    except FedpeftError as refusal:
        said = str(refusal)
    else:
        return edge
    assert "\n" not in said
    return None


@pytest.fixture(scope="module")
def federation_told(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("told"), SilentObserver(), clients=1, rounds=1)


@pytest.mark.long
def test_every_mechanism_at_numbers_beyond_all_bounds(federation_told, tmp_path):
    """Noise that is too small or too large to compute with, budgets and deltas that no float tells from 0."""
    made = federation_told
    [honest] = [i for i in _asked(made) if i.kind == "train"]
    texts = MECHANISMS if scaled(100) == 100 else random.Random(SEED).sample(MECHANISMS, scaled(len(MECHANISMS)))
    joined = 0
    for number, text in enumerate(texts):
        description = told_otherwise(made.server.gateway.description, "privacy", text)
        edge = joins(made, description, tmp_path / str(number))
        if edge is not None:
            joined += 1
            harmless(edge, honest)
            edge.close()
    print(f"{len(texts)} mechanisms, {joined} of them taken")


@pytest.mark.long
def test_every_setting_that_a_server_can_name(federation_told, tmp_path):
    made = federation_told
    description = made.server.gateway.description
    cases = []
    for field in dataclasses.fields(RunConfig):
        kind = type(field.default)
        tries = {bool: (True, 1, "x"), int: (*WHOLE[:-1], 2**63 - 1), float: NUMBERS, str: TEXTS}[kind]
        cases += [(field.name, value) for value in (*tries, [1], {"a": 1})]
    for name in ("peft", "strategy", "codec", "downlink", "optimizer", "head", "model"):
        cases += [(name, text) for text in ("lora(rank=1000000)", "x" * 10_000, "(" * 500, "a(b=" + "9" * 5000 + ")",
                                            "file:/etc/passwd", "/etc", "topk(fraction=1e-300)")]  # fmt: skip
    if scaled(100) < 100:
        cases = random.Random(SEED).sample(cases, scaled(len(cases)))
    joined = 0
    for number, (name, value) in enumerate(cases):
        changed = told_otherwise(description, name, value)
        edge = joins(made, changed, tmp_path / str(number)) if changed is not None else None
        if edge is not None:
            joined += 1
            edge.close()
    print(f"{len(cases)} settings, {joined} of them taken")


def _asked(made):
    if not hasattr(made.server, "direct"):
        made.run()
    return made.server.direct.asked


@pytest.mark.fast
def test_the_attack_knows_every_field():
    """A field of a new type needs values of its own."""
    honest = Instruction("train", 1, 0, b"payload")
    assert {f.name for f in dataclasses.fields(Instruction)} == set(fields_of(honest))
    assert set(PAYLOADS) <= set(fields_of(honest))

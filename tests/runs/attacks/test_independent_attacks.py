"""Attacks by a server, one client or a file, on the code that real servers, clients and commands run."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import tracemalloc
import zlib
from contextlib import nullcontext, suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from PIL import Image

from fedpeft.api import open_run
from fedpeft.commands.report import main as report
from fedpeft.commands.transcript import main as transcript
from fedpeft.communication.messages import Instruction
from fedpeft.data.image_folders import read_pixels
from fedpeft.deployment.client.shared_settings import parse_shared_settings
from fedpeft.deployment.identity.certificates import Authority
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.identity.pinned_roster import PinnedRoster
from fedpeft.deployment.transcript.round_record import RoundRecord, TaskRecord
from fedpeft.errors import FedpeftError, RunError
from fedpeft.peft.saved_adapter import load, refuse_patterns
from fedpeft.privacy.client_protection import OWN
from fedpeft.privacy.secure_sum import words
from fedpeft.privacy.secure_sum.announcement import Announcement
from fedpeft.privacy.secure_sum.certificates import CertifiedRoster, Identity
from fedpeft.privacy.secure_sum.contribution import BESIDE
from fedpeft.privacy.secure_sum.coordinator import Coordinator
from fedpeft.privacy.secure_sum.member import Member
from fedpeft.privacy.secure_sum.neighbours import Terms, graph
from fedpeft.reporting.finished_run import FinishedRun
from fedpeft.simulate import main as simulate
from fedpeft.wiring.config import RunConfig, read_config
from tests.conftest import SilentObserver
from tests.here import Federation
from tests.refusals import has_error, refuses
from tests.studies.made import made_result, write_study

P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order of the group that the authority signs in."""


def twin(der):
    """Return the same certificate with the other of its two valid signatures, which requires no key."""
    made = x509.load_der_x509_certificate(der)
    r, s = decode_dss_signature(made.signature)
    body = made.tbs_certificate_bytes
    start = der.index(body) + len(body)
    algorithm = der[start : start + 2 + der[start + 1]]
    signature = b"\0" + encode_dss_signature(r, P256 - s)
    return _tagged(0x30, body + algorithm + _tagged(0x03, signature))


def _tagged(tag, content):
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([0x82, size >> 8, size & 255])
    return bytes([tag]) + length + content


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    """Five clients of one authority."""
    authority = Authority(tmp_path_factory.mktemp("certs"), 1)
    authority.ensure()
    own = [Credentials.load_client(authority.client(f"edge-{k}")) for k in range(5)]
    return [Identity("run", one.key, one.certificate, one.authority) for one in own], authority


def members(identities, terms, pinned):
    rosters = [CertifiedRoster(replace(one, pinned=pinned), len(identities)) for one in identities]
    return [Member(k, terms, one.private_key, rosters[k], one.shown) for k, one in enumerate(identities)]


# ------------------------------------------------------------------------------- one client against everybody's sum


def test_a_twin_of_one_certificate_voids_no_sum_of_pinned_clients(identities):
    own, authority = identities
    pinned = frozenset(PinnedRoster.from_authority(authority.folder).members.values())
    terms = Terms(4, 0.67, 16, 8, b"context")
    made = members(own, terms, pinned)
    made[4].certificate = twin(own[4].shown)
    assert made[4].certificate != own[4].shown
    at = Coordinator(terms, graph(range(5), 100, 0, 1), CertifiedRoster.of_server(own[0].authority, 5))
    for member in made:
        at.take_keys(member.client, member.keys())
    for member in made:
        at.take_sealed(member.client, member.shares_for(at.peers(member.client)))
    assert len(at.sealed) == 5


@pytest.mark.parametrize(
    ("posing", "at_member", "at_server"),
    [
        ("a confederate's", ("FP6123",), ("FP6183", 2, 1)),
        ("the victim's", ("FP6138", 2), ("FP6138", 2)),
    ],
)
def test_a_twin_of_a_certificate_makes_no_second_member(identities, posing, at_member, at_server):
    """Else a server reads a client in a sum of three, with one confederate and without the authority's key."""
    own, _ = identities
    terms = Terms(2, 0.67, 16, 8, b"context")
    victim, confederate, _, *_ = members(own, terms, None)
    whose = own[1] if posing == "a confederate's" else own[0]
    second = Member(2, terms, own[1].private_key, CertifiedRoster(own[1], 5), twin(whose.shown))
    keys = {member.client: words.read_keys(member.keys()) for member in (victim, confederate, second)}
    with refuses(*at_member):
        victim.shares_for(words.write_peers({1: keys[1], 2: keys[2]}))
    at = Coordinator(terms, graph(range(3), 100, 0, 1), CertifiedRoster.of_server(own[0].authority, 5))
    at.take_keys(1, keys[1].to_bytes())
    with refuses(*at_server):
        at.take_keys(2, keys[2].to_bytes())


def test_a_revoked_certificate_voids_no_sum_of_pinned_clients(tmp_path):
    """A client with a renewed certificate shows its old one in a sum, which the others' roster does not hold."""
    authority = Authority(tmp_path / "certs", 1)
    authority.ensure()
    old = Credentials.load_client(authority.client("edge-0"))
    serial = x509.load_pem_x509_certificate(old.certificate).serial_number
    identity = Identity("run", old.key, old.certificate, old.authority)
    terms = Terms(2, 0.67, 16, 8, b"context")
    member = Member(0, terms, identity.private_key, CertifiedRoster(identity, 3), identity.shown)
    keys = member.keys()
    at = Coordinator(terms, graph(range(3), 100, 0, 1), CertifiedRoster.of_server(old.authority, 3, {serial}))
    with refuses("FP6190", 0, "edge-0"):
        at.take_keys(0, keys)


@pytest.mark.slow
def test_a_federation_of_pinned_clients_goes_on_with_a_client_that_shows_a_twin(tmp_path):
    made = Federation(tmp_path, SilentObserver(), privacy="secure_sum", clients=4, rounds=1)
    (tmp_path / "roster.txt").write_text(PinnedRoster.from_authority(tmp_path / "certs").to_text())
    made.options = [{"roster": str(tmp_path / "roster.txt")}] * 3 + [{}]
    file = tmp_path / "certs" / "clients" / "edge-3" / "client.pem"
    der = x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(Encoding.DER)
    file.write_bytes(x509.load_der_x509_certificate(twin(der)).public_bytes(Encoding.PEM))
    made.start()
    made.server.edges = [made.edge(k) for k in range(4)]
    made.run()
    line = json.loads((tmp_path / "server" / "rounds.jsonl").read_text().splitlines()[-1])
    assert (line["round"], line["rejected"]) == (1, 0)


# ------------------------------------------------------------------------------------- a server against its clients


@pytest.fixture(scope="module")
def summed(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("sums"), SilentObserver(), privacy="secure_sum", clients=3)


@pytest.mark.parametrize(("size", "numbers"), [(0, 2**32 - 1), (2**32 - 1, BESIDE), (2**32 - 1, 2**32 - 1)])
def test_a_sum_of_too_many_numbers_ends_no_client(summed, size, numbers):
    said = struct.pack(">16sIIId", b"n" * 16, 3, size, numbers, 1.0)
    report = summed.server.edges[0].handle(Instruction("sum", 0, 0, b"", step=1, said=said))
    assert has_error(report.error, "FP6189", size + 2 * numbers, 2**32 - 1)


def test_the_longest_vector_that_can_be_announced_is_refused_later_and_allocates_nothing(summed):
    told = Announcement(b"n" * 16, 3, 2**31, BESIDE, 1.0)
    edge = summed.server.edges[1]
    assert not edge.handle(Instruction("sum", 0, 1, b"", step=1, said=told.to_bytes())).error
    assert edge.handle(Instruction("prepare", 0, 1, b"", step=3, said=bytes(4))).error


@pytest.mark.parametrize(
    "text",
    [
        *(f"{name} = 0x{'f' * 5000}" for name in ("rounds", "clients", "batch_size", "seed", "tokens")),
        *(f"{name} = {10**400}" for name in ("rounds", "cohort", "learning_rate")),
        f'cohort = "{10**400}"',
        f'clients = "{10**400}"',
    ],
    ids=lambda text: text[:22],
)
def test_a_server_s_endless_numbers_end_no_client(text, tmp_path):
    with pytest.raises(RunError):
        parse_shared_settings(text)
    (tmp_path / "run.toml").write_text(text)
    with suppress(FedpeftError):  # a text may be the name of a sampler, which is looked for later
        read_config(tmp_path / "run.toml")


def test_no_two_questions_to_a_private_client_share_noise_and_each_is_charged(tmp_path):
    """The server varies what it can in one question of one round."""
    made = Federation(tmp_path, SilentObserver(), privacy="dp_sgd(noise_multiplier=1.0)", local_work="steps(1)")
    made.run()
    asked = [i for i in made.server.direct.asked if i.kind == "train"][-1]
    edge = made.server.edges[asked.client]
    answers = {edge.handle(asked).payload}
    before = edge.protection.ledger.releases(OWN)
    variations = [
        {"client": 7}, {"steps": 1}, {"steps": 5}, {"acknowledged": 0}, {"round": 9}, {"recorded": "a" * 64},
        {"adapter_precision": "bf16"}, {"said": b"x"}, {"residual": b"abc"}, {"learning_rate": 1e-9}, {},
    ]  # fmt: skip
    for fields in variations:
        report = edge.handle(replace(asked, **fields))
        assert not report.error
        assert report.payload not in answers
        answers.add(report.payload)
    charged = edge.protection.ledger.releases(OWN) - before
    assert charged == len(variations) + 4, "of 5 steps five"
    assert edge.handle(replace(asked, attempt=9)).payload in answers, "the attempt is the client's own"
    assert edge.protection.ledger.releases(OWN) - before == charged
    for kind in ("prepare", "evaluate", "sum"):
        assert edge.handle(replace(asked, kind=kind)).error
    assert edge.protection.ledger.releases(OWN) - before == charged


# ----------------------------------------------------------------------------------------------- files that users open


DIGEST = "0" * 64
ALL_OWN = {
    "acknowledged": 0, "adapter_precision": "fp32", "alpha": 0.0, "attempt": 0, "base_precision": "", "bits": 0.0,
    "client": 0, "rank": 0, "steps": 0,
}  # fmt: skip


def transcripts(folder, clients=("a", "b"), run="r", **own):
    """Two files of one record and one task each, which nobody has signed."""
    record = RoundRecord(run, 0, "", "prepare", 0, 3, DIGEST, {}, DIGEST, "", 1).to_bytes()
    files = []
    for place, client in enumerate(clients):
        fields = (ALL_OWN | own) if not place else ALL_OWN
        task = TaskRecord(run, client, hashlib.sha256(record).hexdigest(), DIGEST, 1, fields).to_bytes()
        lines = [{kind: said.decode(), "signature": "", "certificate": ""}
                 for kind, said in (("record", record), ("task", task))]  # fmt: skip
        files.append(folder / f"{place}.jsonl")
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return list(map(str, files))


@pytest.mark.parametrize(
    "given",
    [
        {"clients": ("[/x]", "b")}, {"clients": ("[bold]a", "b[/]")}, {"run": "[/r]"}, {"base_precision": "[/evil]"},
        {"adapter_precision": "[/]"},
    ],
    ids=str,
)  # fmt: skip
def test_words_in_a_transcript_are_no_markup(tmp_path, capsys, given):
    """A server has its words signed before a client looks at them, and `transcript` must still compare."""
    assert transcript(transcripts(tmp_path, **given)) == 0
    assert "same: model and settings of 1 records" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given",
    [
        {"clients": ("a\nsame: all of it", "b")}, {"run": "r\r\n"}, {"base_precision": "nf4\nsame: all"},
        {"adapter_precision": "x" * 64}, {"steps": 10**3000},
    ],
    ids=lambda given: str(given)[:30],
)  # fmt: skip
def test_words_that_forge_a_line_of_the_comparison_are_no_transcript(tmp_path, capsys, given):
    assert transcript(transcripts(tmp_path, **given)) == 2
    assert has_error(capsys.readouterr().err, "FP5129")


@pytest.mark.parametrize("said", [5, None, [], {}, True])
def test_a_statement_that_is_no_text_is_one_sentence(tmp_path, capsys, said):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"record": said, "signature": "", "certificate": ""}) + "\n")
    assert transcript([str(file), str(file)]) == 2
    assert has_error(capsys.readouterr().err, "FP5101", "line 1")


BOMB = base64.b64encode(zlib.compress(bytes(50_000_000), 9)).decode()


@pytest.mark.parametrize(
    "changed",
    [
        {"local_steps": 10**400}, {"trained_rows": "x"}, {"settled": 5}, {"point": [1]}, {"preset": {}},
        {"rounds": [0]}, {"rounds": [{"a": 1}]}, {"rounds": 7}, {"calibration": 2**63},
        {"calibration": {"rows": [1], "confidence": ["<script>"], "accuracy": [0.5]}},
        {"calibration": {"rows": [1, 2], "confidence": [0.5], "accuracy": [0.5]}},
        {"client_accuracy": {"quantiles": -1, "worst_tenth": 0.5}},
        {"client_accuracy": {"quantiles": [0.5], "worst_tenth": None}},
        {"correct": {"kind": "bits", "length": 5, "data": "!!"}}, {"correct": {"kind": "f8", "length": 1, "data": ""}},
        {"correct": {"kind": "bits", "length": 10**12, "data": ""}},
        {"correct": {"kind": "bits", "length": 8, "data": BOMB}}, {"count": {"kind": "i4", "length": -1, "data": BOMB}},
        {"summary": {"accuracy": 10**400}},
    ],
    ids=lambda changed: str(changed)[:48],
)  # fmt: skip
def test_results_from_elsewhere_are_a_report_or_one_sentence(tmp_path, capsys, changed):
    result = made_result({"codec": "fp32"}, 0, 0.8, 10.0)
    file = write_study(tmp_path / "study", [result]) / "results.jsonl"
    line = json.loads(result.line())
    summary = {**line["summary"], **changed.pop("summary", {})}
    file.write_text(json.dumps({**line, **changed, "summary": summary}) + "\n")
    tracemalloc.start()
    try:
        assert report([str(file), "--output", str(tmp_path / "page.html")]) == 2
        assert tracemalloc.get_traced_memory()[1] < 30_000_000, "a bomb is not unpacked"
    finally:
        tracemalloc.stop()
    assert has_error("".join(capsys.readouterr()), "FP5219", "line 1")


def test_a_formula_in_a_name_is_drawn_as_it_is(tmp_path):
    """Matplotlib reads what stands between dollar signs as a formula, and fails where it is none."""
    result = made_result({"codec": "fp32"}, 0, 0.8, 10.0)
    line = json.loads(result.line())
    line |= {"study": "", "preset": "", "point": {}, "summary": line["summary"] | {"metric": r"$\frac{$"}}
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "results.jsonl").write_text(json.dumps(line) + "\n")
    assert report([str(tmp_path / "alone" / "results.jsonl"), "--output", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_modules", "(.*.*.*.*.*)*x"), ("target_modules", ["(a+)+"]), ("rank_pattern", {"(.*.*.*)*x": 4}),
        ("alpha_pattern", {"[a": 1}), ("exclude_modules", "(.*.*)*x"), ("layers_pattern", "(a|a)*"),
        ("modules_to_save", [5]),
    ],
)  # fmt: skip
def test_an_adapter_s_settings_hold_no_pattern_that_is_matched_for_years(name, value):
    """`predict`, `evaluate` and `export` open an adapter with peft, which matches these with each layer's name."""
    with refuses("FP5251", name, "adapter_config.json"):
        refuse_patterns({"target_modules": ["encoder.layer.0.attention.self.query"], name: value})


def test_the_settings_of_a_saved_adapter_are_read_before_peft_reads_them(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": "(.*.*)*x"}')
    task = SimpleNamespace(model=lambda base, classes: SimpleNamespace(base=base))
    with refuses("FP5251", "target_modules", "adapter_config.json"):
        load(tmp_path, task, None, 0)


@pytest.mark.parametrize("temperature", [10**400, -(10**400), float("inf")], ids=["huge", "minus huge", "infinite"])
def test_a_temperature_that_no_model_has_is_left_out(tmp_path, temperature):
    assert FinishedRun(tmp_path, RunConfig(), {"temperature": temperature}).temperature == 1.0


CODE = "import pathlib\n(pathlib.Path(__file__).parent / 'ran').write_text('')\n"


@pytest.mark.parametrize("form", ["text", "list", "record", "relative record", "home"])
def test_the_folder_of_a_run_runs_no_code_of_its_own(tmp_path, monkeypatch, fresh_plugins, capsys, form):
    """`predict`, `export`, `evaluate` and `audit` read a run's config.toml, which may come from elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    code = f"{CODE}# {form}\n"  # a module of the same digest is imported once
    (tmp_path / "evil.py").write_text(code)
    sha = hashlib.sha256(code.encode()).hexdigest()
    source = {"record": str(tmp_path / "evil.py"), "home": "~/evil.py"}.get(form, "evil.py")
    record = f'[[plugin]]\nsource = "{source}"\nsha256 = "{sha}"\nparts = ["strategies.evil"]\n'
    named = {"text": 'plugin = "evil.py"\n', "list": 'plugin = ["evil.py"]\n'}.get(form, "")
    (tmp_path / "config.toml").write_text(named + 'dataset = "tiny"\n' + ("" if named else record))
    (tmp_path / "summary.json").write_text('{"task": "classification"}')
    for read in (FinishedRun.read, open_run):
        refused = refuses("FP1509", "'evil.py'", "--plugin") if named else nullcontext()
        with refused:
            read(tmp_path)
    assert simulate(["--resume", str(tmp_path)]) == 2
    assert has_error(capsys.readouterr().err, "FP1509" if named else "FP1265", "evil.py")
    assert not (tmp_path / "ran").exists()


def test_a_user_s_own_file_of_settings_names_a_plugin_beside_it(tmp_path, fresh_plugins):
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "mine.toml").write_text('plugin = "mine.py"\n')
    with refuses("FP1503", "mine.py"):
        read_config(tmp_path / "mine.toml")
    assert (tmp_path / "ran").exists()


def test_a_picture_is_opened_by_no_program(tmp_path, monkeypatch):
    """Pillow would hand an EPS, whatever its name, to Ghostscript."""
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: started.append(given))
    file = tmp_path / "cat.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with refuses("FP3059", "cat.png"):
        read_pixels([str(file)], 8)
    assert not started
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "PPM", "WEBP"):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / f"a.{kind.lower()}", kind)
        assert read_pixels([str(tmp_path / f"a.{kind.lower()}")], 8).shape == (1, 8, 8, 3)

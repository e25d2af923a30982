"""Every command, on folders in which one file is damaged: exit code 0, 1 or 2 and one sentence, never a traceback.

What a run leaves is damaged file by file in every way that `tests.attacks.damage` knows; a few of these belong to the
ordinary tests, the rest to the long tier.
"""

from __future__ import annotations

import itertools
import random
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedpeft import serve, simulate
from fedpeft.audit import __main__ as audit
from fedpeft.commands import certs, describe, export, predict, report
from fedpeft.commands.certs import main as make_certificates
from fedpeft.deployment.identity.certificates import RevocationList
from fedpeft.deployment.identity.credentials import Credentials
from fedpeft.deployment.identity.members import Roster
from fedpeft.errors import FedpeftError, RunError
from fedpeft.join import main as join
from fedpeft.rounds.progress import Checkpoints
from fedpeft.study import __main__ as study
from tests.attacks.damage import DAMAGES, damaged, files_in
from tests.attacks.scale import SEED, configuration, scaled
from tests.conftest import SilentObserver
from tests.here import Federation
from tests.refusals import refuses

PATIENCE = 300
"""Seconds after which a command hangs, on a pipe say."""


class HungError(Exception):
    pass


@contextmanager
def not_for_ever():
    def hung(*_):
        raise HungError

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


COMMANDS = {
    "simulate --resume": lambda run, out: simulate.main(["--resume", str(run)]),
    "report": lambda run, out: report.main([str(run), "--output", str(out / "report.html")]),
    "export": lambda run, out: export.main([str(run), "--output", str(out / "exported")]),
    "export --merge": lambda run, out: export.main([str(run), "--merge", "--output", str(out / "merged")]),
    "audit": lambda run, out: audit.main([str(run)]),
    "predict": lambda run, out: predict.main([str(run), "a text"]),
}


def one_sentence(command, folder, out, capfd):
    """Check that the command ends, and prints one sentence if it fails."""
    capfd.readouterr()
    with not_for_ever():
        try:
            code = command(folder, out)
        except SystemExit as stop:
            code = stop.code
    said = "".join(capfd.readouterr())
    assert code in (0, 1, 2), said
    assert "Traceback" not in said
    assert code != 2 or "error:" in said


def refusal(call):
    """Return the one-line message of the call's refusal; empty if it does not refuse."""
    try:
        call()
    except FedpeftError as error:
        said = str(error)
    else:
        return ""
    assert said
    assert "\n" not in said
    return said


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = folder.parent / "run.toml"
    settings.write_text(configuration("plain", rounds=2).to_toml())
    assert simulate.main([str(settings), "--output", str(folder)]) == 0
    return folder


QUICK = [
    ("rounds.jsonl", "folder", "simulate --resume"),
    ("rounds.jsonl", "list", "report"),
    ("rounds.jsonl", "object", "report"),
    ("rounds.svg", "pipe", "simulate --resume"),
    ("adapter/labels.json", "gone", "predict"),
    ("adapter/labels.json", "gone", "export --merge"),
    ("summary.json", "pipe", "report"),
    ("summary.json", "deep", "predict"),
    ("config.toml", "deep", "report"),
    ("adapter/adapter_config.json", "list", "predict"),
    ("adapter/adapter_model.safetensors", "halved", "predict"),
    ("adapter/labels.json", "object", "predict"),
    ("adapter/adapter_config.json", "pipe", "export"),
    ("checkpoint/000003.safetensors", "flipped", "simulate --resume"),
    ("checkpoint/000003.safetensors", "pipe", "simulate --resume"),
    ("adapter/adapter_model.safetensors", "pipe", "predict"),
]


@pytest.mark.parametrize(("name", "damage", "command"), QUICK)
def test_a_damaged_file(run, name, damage, command, tmp_path, capfd):
    assert name in files_in(run)
    one_sentence(COMMANDS[command], damaged(run, tmp_path / "run", name, damage), tmp_path, capfd)


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_every_damaged_file(run, command, tmp_path, capfd):
    cases = list(itertools.product(files_in(run), DAMAGES))
    cases = cases if scaled(100) == 100 else random.Random(f"{SEED} {command}").sample(cases, scaled(len(cases)))
    for number, (name, damage) in enumerate(cases):
        with capfd.disabled():
            print(f"{command}: {name}, {damage}", flush=True)
        place = tmp_path / str(number)
        place.mkdir()
        one_sentence(COMMANDS[command], damaged(run, place / "run", name, damage), place, capfd)
        shutil.rmtree(place)


# ------------------------------------------------------------------------------------------------------- other folders


@pytest.mark.fast
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_study_is_one_sentence(damage, tmp_path, capfd):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.toml").write_text('seeds = [0]\n[base]\ndataset = "tiny"\n[axes]\nclients = [4, 8]\n')
    line = '{"study": "study", "preset": "", "point": {}, "seed": 0, "status": "failed", "config": {}, "reason": "x"}\n'
    (folder / "results.jsonl").write_text(line)
    commands = {
        "study": lambda place, _: study.main([str(place / "study.toml"), "--dry-run"]),
        "report": lambda place, out: report.main([str(place), "--output", str(out / "report.html")]),
    }
    for name, (word, command) in itertools.product(("study.toml", "results.jsonl"), commands.items()):
        place = damaged(folder, tmp_path / f"{word} {name}", name, damage)
        one_sentence(command, place, tmp_path, capfd)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authority") / "certs"
    assert make_certificates(["--folder", str(folder), "--clients", "a,b"]) == 0
    return folder


@pytest.mark.fast
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_certificates_are_one_sentence(authority, damage, tmp_path, capfd):
    """For who makes more of them, for a server and for a client that join with them."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a", "label": "x"}\n')

    def joins(place, _):
        return join(["--server", "127.0.0.1:9", "--data", str(data), "--certs", str(place), "--give-up", "0.1",
                     "--state", str(tmp_path / "state")])  # fmt: skip

    def serves(place, _):
        said = refusal(lambda: RevocationList(place / "revoked.pem", Credentials.load_server(place).authority))
        print("error:" if said else "")
        return 2 if said else 0

    commands = {
        "certs": lambda place, _: certs.main(["--folder", str(place), "--clients", "c", "--revoke", "b"]),
        "serve": serves,
    }
    for number, (name, command) in enumerate(itertools.product(files_in(authority), commands.values())):
        place = damaged(authority, tmp_path / str(number), name, damage)
        one_sentence(command, place, tmp_path, capfd)
    own = authority / "clients" / "a"
    for name in files_in(own):
        one_sentence(joins, damaged(own, tmp_path / f"own {name}", name, damage), tmp_path, capfd)


@pytest.mark.fast
def test_another_s_key_is_one_sentence(authority, tmp_path, capfd):
    place = tmp_path / "mixed"
    shutil.copytree(authority / "clients" / "a", place)
    shutil.copy(authority / "clients" / "b" / "client.key", place / "client.key")
    with refuses("FP5055", "client", "client"):
        Credentials.load_client(place)


@pytest.mark.fast
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_of_clients_is_one_sentence(damage, tmp_path):
    roster = Roster(tmp_path / "roster.json", 3)
    roster.enter("a", 0, None, 10)
    roster.start()
    DAMAGES[damage](tmp_path / "roster.json")
    said = refusal(lambda: Roster(tmp_path / "roster.json", 3))
    assert "the list of clients" in said or damage == "gone"


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_of_server_and_clients_is_one_sentence(damage, tmp_path):
    """After a round with privacy both sides are started again, each file of theirs damaged in turn."""
    made = Federation(tmp_path, SilentObserver(), rounds=1, privacy="dp_sgd(noise_multiplier=1.5)")
    made.run()
    asked = next(i for i in made.server.direct.asked if i.client == 0)
    home = tmp_path / "edge-0"
    kept = tmp_path / "kept"
    shutil.copytree(home, kept)
    for name in files_in(kept):
        shutil.rmtree(home)
        damaged(kept, home, name, damage)
        with not_for_ever():
            refusal(lambda: made.edge(0).handle(asked))


@pytest.mark.fast
def test_a_checkpoint_whose_header_a_hand_has_written_is_one_sentence(tmp_path):
    """Checksum and all: what is in it is no state of a run."""
    import json

    import torch
    from safetensors import safe_open
    from safetensors.torch import save

    from fedpeft.rounds.progress import ServerState, _compute_checksum

    content = ServerState(round=1, adapter={"a": torch.ones(2)}).to_bytes()
    file = tmp_path / "000002.safetensors"
    file.write_bytes(content)
    with safe_open(file, framework="pt") as opened:
        plain = json.loads(opened.metadata()["progress"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    for name in [n for n in plain if n != "version"]:
        for value in (None, 7, "x", [1], {"a": 1}):
            header = json.dumps(plain | {name: value})
            file.write_bytes(save(tensors, {"progress": header, "sha256": _compute_checksum(header, tensors)}))
            assert "can't be read" in (refusal(Checkpoints(tmp_path).load) or "can't be read")
    for header in ("[1]", "{}", "null", "[" * 100_000):
        file.write_bytes(save(tensors, {"progress": header, "sha256": _compute_checksum(header, tensors)}))
        with pytest.raises(RunError):
            Checkpoints(tmp_path).load()


@pytest.mark.fast
@pytest.mark.parametrize("text", ["x = [1", "parts = 7", "raise SystemExit", "import no_such_module"])
def test_a_plugin_that_can_t_be_loaded_is_one_sentence(text, tmp_path, capfd):
    (tmp_path / "mine.py").write_text(text + "\n")
    words = ["lora", "--plugin", str(tmp_path / "mine.py")]
    one_sentence(lambda *_: describe.main(words), tmp_path, tmp_path, capfd)


@pytest.mark.fast
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_configuration_is_one_sentence(damage, tmp_path, capfd):
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "config.toml").write_text(configuration("plain").to_toml())
    (tmp_path / "good" / "serve.toml").write_text('listen = "127.0.0.1:0"\ncerts = "/nowhere"\n')
    for name in files_in(tmp_path / "good"):
        place = damaged(tmp_path / "good", tmp_path / name, name, damage)
        one_sentence(lambda folder, _: serve.main(["--resume", str(folder)]), place, tmp_path, capfd)


@pytest.mark.fast
def test_all_damages_damage(tmp_path):
    """Each makes another file of it, and none is left out of what can be damaged."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.json").write_text('{"a": 1}\n{"b": 2}\n')
    assert files_in(tmp_path / "run") == ["a.json"]
    for damage in DAMAGES:
        place = damaged(tmp_path / "run", tmp_path / damage, "a.json", damage)
        there = Path(place / "a.json")
        assert not there.is_file() or there.read_bytes() != b'{"a": 1}\n{"b": 2}\n'

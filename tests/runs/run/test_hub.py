"""Sending an exported folder to a hub: one that speaks the hub's protocol here, and one that can't be reached."""

from __future__ import annotations

import base64
import json
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import fedpeft
from fedpeft.commands import export
from fedpeft.reporting.exports.hub import push
from tests.refusals import has_error, refuses


class Hub(BaseHTTPRequestHandler):
    """Takes one commit of small files."""

    files: dict[str, bytes]
    made: list[dict[str, object]]

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            self.made.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/me/adapter", "id": "me/adapter"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            self.answer({"files": modes})
        elif "validate-yaml" in self.path:
            self.answer({"errors": [], "warnings": []})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"http://{self.headers['Host']}/me/adapter/commit/1", "commitOid": "1",
                         "hookOutput": "", "success": True})  # fmt: skip

    def do_GET(self):
        self.answer({"id": "me/adapter", "sha": "1", "siblings": []})

    def answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    kind = type("Here", (Hub,), {"files": {}, "made": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "README.md").write_text("---\ntags: [fedpeft]\n---\n\n# An adapter\n")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("public", [False, True])
def test_all_files_of_the_folder_are_sent_as_one_commit(hub, folder, public):
    address, kind = hub
    assert push(folder, "me/adapter", public, endpoint=address) == f"{address}/me/adapter"
    assert kind.files == {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert kind.made[0]["name"] == "adapter"
    made = kind.made[0]  # of older versions of the library: private
    assert made.get("visibility", "private" if made.get("private") else "public") == ("public" if public else "private")


@pytest.mark.fast
def test_a_hub_out_of_reach_leaves_the_folder(folder):
    with refuses("FP5167", folder, "me/adapter"):
        push(folder, "me/adapter", endpoint="http://127.0.0.1:9")
    assert (folder / "adapter" / "adapter_config.json").is_file()


@pytest.mark.fast
@pytest.mark.parametrize("name", ["adapter", "a/b/c", "me/ad apter", "me/", "../x"])
def test_what_is_no_name_is_refused(name, folder):
    with refuses("FP1359"):
        push(folder, name)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--push", "adapter"], ("FP1359",)),
        (["--public"], ("FP1174", "--push")),
        (["--push", "me/adapter", "--client", "1"], ("FP1173", "--push", "--client")),
    ],
)
def test_flags_that_do_not_go_together_are_refused_before_anything_is_written(words, told, tmp_path, capsys):
    assert export.main([str(tmp_path / "run"), *words]) == 2
    assert has_error(capsys.readouterr().err, *told)
    assert not (tmp_path / "run").exists()


def test_a_run_from_python_can_be_sent(hub, tmp_path):
    address, kind = hub
    run = fedpeft.run_simulation(
        dataset="tiny(rows=60, test_rows=20)", clients=2, cohort="all", rounds=1, workers=1, partition="iid",
        peft="lora(rank=2, layers=1)", local_work="steps(1)", dtype="fp32", output=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert run.push_to_hub("me/adapter", endpoint=address) == f"{address}/me/adapter"
    assert {"README.md", "adapter/adapter_config.json", "adapter/head.safetensors"} <= kind.files.keys()
    assert not (tmp_path / "run" / "export").exists()


@pytest.mark.fast
def test_of_a_run_that_can_not_be_exported_nothing_is_left_in_the_folder_of_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with refuses("FP5135"):
        fedpeft.Run(tmp_path / "none", fedpeft.RunConfig(), {}).push_to_hub("me/adapter")
    assert not list(tmp_path.glob("fedpeft-*"))

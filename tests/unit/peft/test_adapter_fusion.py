"""AdapterFusion: one adapter alone is that adapter, attention is as written out, and what does not fit is said."""

from __future__ import annotations

import dataclasses
import json
import shutil

import torch
from fedpeft.clients.sequential import SequentialExecutor

from fedpeft.conformance.peft_cases import Case, create_finished_runs, create_model
from fedpeft.deployment.client.shared_settings import parse_shared_settings
from fedpeft.deployment.options import ServeOptions
from fedpeft.deployment.server.settings_checks import check
from fedpeft.models.task import find_trainable
from fedpeft.parts import format_part
from fedpeft.parts.families import PEFT_METHODS
from fedpeft.peft import saved_adapter
from fedpeft.peft.methods.adapter_fusion import Fusion, compute_identity_pull
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run
from tests.refusals import refuses

BOTH = "adapter_fusion(runs=('{finished}/0', '{finished}/1'), width=5)"


def test_with_one_adapter_and_the_identity_it_is_that_adapter(tiny):
    case = Case("adapter_fusion(runs='{finished}/0', width=0)", tiny)
    values = {n: torch.eye(len(t), dtype=t.dtype) if n.endswith("value.weight") else t for n, t in case.start.items()}
    case.sequential.load(values | {n: t for n, t in case.first.items() if n.startswith("head.")})
    task, rows, folder, classes = tiny
    alone = create_model(PEFT_METHODS.build("bottleneck(dim=4)"), tiny, "fp64")
    saved = saved_adapter.load_file(
        create_finished_runs(folder, task, classes) / "0" / "adapter" / "adapter.safetensors"
    )
    saved_adapter.put(alone, saved)
    batch = rows.batch(torch.arange(9).numpy())
    with torch.no_grad():
        assert torch.allclose(case.model.features(batch), alone.features(batch), atol=1e-12)
        case.sequential.load(case.start)
        assert not torch.allclose(case.model.features(batch), alone.features(batch), atol=1e-3)


def test_the_attention_is_that_of_each_token_by_itself(tiny):
    case = Case(BOTH, tiny)
    layer = next(m for m in case.model.modules() if isinstance(m, Fusion))
    x = torch.randn(2, 3, layer.base_layer.in_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    case.sequential.load({n: 1.5 * t for n, t in case.start.items()})
    query, key, value = (getattr(layer, name).weight for name in ("query", "key", "value"))
    with torch.no_grad():
        found = layer(x)
        for row in range(2):
            for token in range(3):
                h = layer.base_layer(x[row, token])
                z = [a.up.weight @ (a.down.weight @ h + a.down.bias).relu() + a.up.bias for a in layer.adapters]
                weights = torch.stack([((query @ h) @ (key @ each)).exp() for each in z])
                assert 0.01 < float(weights[0] / weights.sum()) < 0.99
                mixed = sum(w * (value @ each) for w, each in zip(weights / weights.sum(), z, strict=True))
                assert torch.allclose(found[row, token], h + mixed, atol=1e-12)


def test_the_paper_s_size_and_the_narrow_one(tiny):
    d, layers = 48, 3
    assert of_width(tiny, 0) == layers * 3 * d * d
    assert of_width(tiny, 5) == layers * (2 * 5 * d + d * d)


def of_width(tiny, width):
    case = Case(f"adapter_fusion(runs='{{finished}}/0', width={width})", tiny)
    return sum(t.numel for t in case.layout.tensors if t.role != "head")


def test_values_are_pulled_to_the_identity_in_each_local_step(tiny):
    weight = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(0.01 * (weight - torch.eye(5)).square().sum(), weight)
    assert torch.allclose(compute_identity_pull(weight.detach()), gradient)
    case = Case(BOTH, tiny)
    job = case.jobs(steps=1, rate=0.5, optimizer="sgd")[0]
    executor = SequentialExecutor(case.model, case.task, case.rows, case.layout)
    [pulled] = executor.train([job])
    executor.penalties = {}
    [plain] = executor.train([job])
    for name, tensor in pulled.state.items():
        moved = (
            -0.5 * compute_identity_pull(job.received[name])
            if name.endswith("value.weight")
            else torch.zeros((), dtype=torch.float64)
        )
        assert torch.allclose(tensor - plain.state[name], moved, atol=1e-12), name


def test_a_saved_result_needs_the_runs_no_more(tiny, tmp_path):
    task, rows, folder, classes = tiny
    runs = tmp_path / "runs"
    shutil.copytree(create_finished_runs(folder, task, classes), runs)
    spec = f"adapter_fusion(runs=('{runs}/0', '{runs}/1'), width=5)"
    case = Case(spec, tiny, "fp32")
    case.sequential.load(case.start)
    (tmp_path / "out").mkdir()
    saved_adapter.save(tmp_path / "out", case.model, case.start, ["a"] * classes, None, spec)
    shutil.rmtree(runs)
    again = saved_adapter.load(tmp_path / "out", task, task.base(folder, torch.float32), classes)
    batch = rows.batch(torch.arange(9).numpy())
    with torch.no_grad():
        assert torch.allclose(again(batch), case.model(batch), atol=1e-5)
    assert find_trainable(again) == {}


def test_what_does_not_go_together_is_said(tiny, tmp_path):
    task, _, folder, classes = tiny
    shutil.copytree(create_finished_runs(folder, task, classes) / "0", tmp_path / "other")
    file = tmp_path / "other" / "adapter" / "method.json"
    told = json.loads(file.read_text())
    assert told["base"]
    file.write_text(json.dumps(told | {"base": {m: row[::-1] for m, row in told["base"].items()}}))
    for settings, words in {
        "": ("FP1242",),
        "runs='nowhere'": ("FP1244", "nowhere"),
        "runs='{finished}/0', place='houlsby'": ("FP1246", "place", "pfeiffer"),
        "runs='{finished}/0', activation='gelu'": ("FP1246", "activation", "relu"),
        f"runs='{tmp_path}/other'": ("FP1247",),
    }.items():
        with refuses(*words):
            Case(f"adapter_fusion({settings})", tiny)
    file.write_text(json.dumps({"method": "adamix"}))
    with refuses("FP1245", "adamix"):
        Case(f"adapter_fusion(runs='{tmp_path}/other')", tiny)


def test_a_method_that_needs_this_machine_is_refused_to_real_clients(monkeypatch):
    spec = parse_run(RunConfig(peft="bitfit"))
    check(spec, ServeOptions())
    monkeypatch.setattr(type(spec.method), "own_machine", "reads a file of this machine")
    with refuses("FP1133", "bitfit", "reads a file of this machine"):
        check(spec, ServeOptions())


def test_a_server_names_no_folder_of_a_client():
    text = RunConfig(peft="adapter_fusion(runs='runs/a')", clients=2).to_toml()
    with refuses("FP5094", "FP5093", "reads finished runs in folders of this machine"):
        parse_shared_settings(text)
    mixed = RunConfig(peft=f"adapter_fusion(runs=('runs/a', 'sha256:{'0' * 64}'))", clients=2).to_toml()
    with refuses("FP5094", "FP5093"):
        parse_shared_settings(mixed)


def test_a_run_is_named_once():
    twice = f"sha256:{'0' * 64}"
    text = RunConfig(peft=f"adapter_fusion(runs=('{twice}', 'sha256:{'1' * 64}', '{twice}'))", clients=2).to_toml()
    with refuses("FP5094", "FP1993", twice):
        parse_shared_settings(text)
    with refuses("FP1993", "runs/a"):
        PEFT_METHODS.build("adapter_fusion(runs=('runs/a', 'runs/a'))")


def test_a_client_finds_its_runs_by_their_digests(tiny, tmp_path):
    task, _, folder, classes = tiny
    runs = create_finished_runs(folder, task, classes)
    method = PEFT_METHODS.build(f"adapter_fusion(runs=('{runs}/0', '{runs}/1'), width=4)")
    told = method.name_by_digests()
    assert told.names_digests()
    assert not method.names_digests()
    assert str(runs) not in format_part(told)
    assert told == PEFT_METHODS.build(format_part(told))
    shutil.copytree(runs / "0", tmp_path / "mine" / "b")
    shutil.copytree(runs / "1", tmp_path / "mine" / "a")
    own = [tmp_path / "mine" / name for name in ("a", "b")]
    assert told.find_runs(own) == dataclasses.replace(method, runs=(str(own[1]), str(own[0])))
    with refuses("FP1838", 2, own[0]):
        told.find_runs(own[:1])
    with refuses("FP1838", "nothing"):
        told.find_runs([])
    file = own[0] / "adapter" / saved_adapter.OWN_TENSORS
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with refuses("FP1838"):
        told.find_runs(own)
    with refuses("FP1244", tmp_path):
        told.find_runs([tmp_path])

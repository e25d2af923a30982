"""FlowerTune projects: what a run makes of their keys, and that their code is not executed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from fedpeft.clients.local_training import Schedule
from safetensors.torch import load_file

from fedpeft.commands.flowertune import main
from fedpeft.data.made_words import WORDS
from fedpeft.models.base_model import resolve_model
from fedpeft.parts.families import PEFT_METHODS, strategies
from fedpeft.reporting.flowertune_project import TEMPLATES, FlowerTuneProject, compute_fingerprint
from fedpeft.wiring.catalogue import build_part
from fedpeft.wiring.config import build_config
from tests.refusals import has_error, refuses

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "flowertune"
TRACKS = ["general_nlp", "finance", "medical", "code"]
TINY = ["model.name=tiny_lm", "model.quantization=0", "train.seq-length=64"]
STEPS = "train.training-arguments.max-steps=2"


def flags(assignments):
    return [word for text in assignments for word in ("--set", text)]


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(EXAMPLES / "general_nlp", folder)
    package = folder / "my_app"
    package.mkdir()
    (package / "__init__.py").write_text('"""my-app: A Flower / FlowerTune app."""\n')
    return folder


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    made = [
        {"instruction": WORDS[i % 70], "input": "", "output": f"{WORDS[i % 60]} {WORDS[i % 50]}"} for i in range(120)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


@pytest.mark.fast
def test_a_round_has_the_templates_learning_rate():
    """Its formula, at 5e-5 to 1e-6 over 200 rounds."""
    schedule = Schedule(5e-5, 200, "annealing", 1e-6 / 5e-5)
    for round_number in (1, 2, 100, 199, 200):
        theirs = 1e-6 + 0.5 * (5e-5 - 1e-6) * (1 + math.cos(math.pi * round_number / 200))
        assert schedule.get_rate(round_number) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.fast
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_other_schedules_are_as_before_and_can_have_a_floor(shape):
    assert Schedule(1.0, 4, shape).get_rate(1) == 1
    assert Schedule(1.0, 4, shape).get_rate(3) == pytest.approx(0.5)
    assert Schedule(1.0, 4, shape, 0.2).get_rate(3) == pytest.approx(0.6)


@pytest.mark.fast
@pytest.mark.parametrize("track", TRACKS)
def test_shipped_configurations_are_the_tracks(track):
    project = FlowerTuneProject.read(EXAMPLES / track, ["model.lora.target-modules=q_proj,v_proj"])
    config = project.config("rows.jsonl")
    assert (project.track, project.code, project.ignored) == (track, (), {})
    assert (config.rounds, config.batch_size, config.local_work, config.tokens) == (200, 16, "steps(10)", 512)
    assert config.safeguard == "none"
    assert config.cohort == {"general_nlp": 2, "finance": 5, "medical": 2, "code": 2}[track]
    method = PEFT_METHODS.build(config.peft)
    assert (method.rank, method.alpha, method.dropout, method.base_precision) == (32, 64, 0.075, "nf4")
    assert method.targets == ("q_proj", "v_proj")
    optimizer = build_part(config, "optimizer")
    assert (optimizer.max_norm, optimizer.checkpointing, optimizer.warmup, optimizer.rows_per_pass) == (1, True, 0, 0)
    assert optimizer.floor == pytest.approx(0.02)
    assert isinstance(build_part(config, "strategy"), strategies.part("fedit"))


@pytest.mark.fast
def test_further_keys_are_honoured(project):
    more = [
        *TINY, "train.training-arguments.gradient-accumulation-steps=4", "train.training-arguments.max-steps=-1",
        "train.training-arguments.num-train-epochs=2", "strategy.use-flexlora=true", "strategy.fraction-train=0.01",
        "train.training-arguments.weight-decay=0.1", "model.gradient-checkpointing=false", "task.name=code",
    ]  # fmt: skip
    config = FlowerTuneProject.read(project, more).config("rows.jsonl")
    assert (config.batch_size, config.local_work, config.strategy, config.cohort) == (64, "epochs(2.0)", "flexlora", 2)
    optimizer = build_part(config, "optimizer")
    assert (optimizer.rows_per_pass, optimizer.weight_decay, optimizer.checkpointing) == (16, 0.1, False)
    assert "q_proj" in config.peft  # what peft has for Llama
    assert "clients=10" in config.dataset  # of the code track
    eight = FlowerTuneProject.read(project, [*TINY, "model.quantization=8"]).config("rows.jsonl")
    assert PEFT_METHODS.build(eight.peft).base_precision == "int8"
    dora = FlowerTuneProject.read(project, [*TINY, "model.lora.use-dora=true"]).config("rows.jsonl")
    assert dora.peft.startswith("dora(")
    assert build_config(vars(dora), "again") == dora


@pytest.mark.fast
def test_number_of_supernodes_is_read_from_older_projects(project):
    file = project / "pyproject.toml"
    file.write_text(
        file.read_text()
        + '\n[tool.flwr.federations]\ndefault = "local"\n[tool.flwr.federations.local]\noptions.num-supernodes = 7\n'
    )
    assert FlowerTuneProject.read(project).clients == 7
    assert FlowerTuneProject.read(project, clients=3).clients == 3


def test_a_run_leaves_what_peft_loads_and_counts_its_traffic(project, rows, tmp_path, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    sets = flags([*TINY, STEPS, "num-server-rounds=3", "train.save-every-round=2"])
    assert main([str(project), *sets, "--data", str(rows), "--workers", "1", "--output", str(run)]) == 0
    assert sorted(folder.name for folder in run.glob("peft_*")) == ["peft_2", "peft_3"]
    base = AutoModelForCausalLM.from_pretrained(resolve_model("tiny_lm"))
    ids = torch.arange(5, 25)[None]
    plain = base(input_ids=ids).logits
    ours = PeftModel.from_pretrained(base, run / "adapter")(input_ids=ids).logits
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(resolve_model("tiny_lm")), run / "peft_3"
    )(input_ids=ids).logits  # fmt: skip
    assert (theirs - ours).abs().max() < 1e-6 < (theirs - plain).abs().max()
    traffic = json.loads((run / "communication.json").read_text())
    tensors = load_file(run / "peft_3" / "adapter_model.safetensors")
    one_way = sum(128 + 4 * t.numel() + len(name) for name, t in tensors.items())
    assert traffic["template_mb"] == pytest.approx(2 * 2 * 3 * one_way / 1024**2, abs=1e-3)
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert traffic["bytes"] == sum(line["uplink_bytes"] + line["downlink_bytes"] for line in lines)
    assert "as FlowerTune counts" in capsys.readouterr().out


def test_folders_are_those_of_an_old_peft(project, rows, tmp_path):
    """Version 0.6 refuses other keys (huggingface/peft, v0.6.2, src/peft/tuners/lora/config.py)."""
    run = tmp_path / "run"
    sets = flags([*TINY, STEPS, "num-server-rounds=1", "strategy.use-flexlora=true"])
    assert main([str(project), *sets, "--data", str(rows), "--workers", "1", "--output", str(run)]) == 0
    config = json.loads((run / "peft_1" / "adapter_config.json").read_text())
    known = {
        "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "r",
        "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "modules_to_save",
        "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    }  # fmt: skip
    assert set(config) <= known
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (32, 64, "tiny_lm")


def test_a_run_continues(project, rows, tmp_path):
    run = tmp_path / "run"
    words = [str(project), *flags([*TINY, STEPS, "num-server-rounds=2"]), "--data", str(rows), "--workers", "1"]
    assert main([*words, "--output", str(run)]) == 0
    before = load_file(run / "peft_2" / "adapter_model.safetensors")
    shutil.rmtree(run / "peft_2")
    (run / "summary.json").unlink()
    assert main([*words, "--resume", str(run)]) == 0
    assert not (run / "peft_2").exists()  # that round was finished before
    again = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in before.items())


@pytest.mark.fast
def test_files_of_a_template_are_known_whatever_the_package_is_called():
    assert compute_fingerprint('"""x: A Flower / FlowerTune app."""\n\n# nothing\n', "x") in TEMPLATES
    one = 'from one.models import get\nreformat(x, llm_task="code")\n'
    other = '\n# a note\nfrom other.models import get\n\nreformat(x, llm_task="finance")\n'
    assert (
        compute_fingerprint(one, "one")
        == compute_fingerprint(other, "other")
        != compute_fingerprint(one + "x = 1\n", "one")
    )


def test_code_of_its_own_is_named_and_not_executed(project, rows, tmp_path, capsys):
    written = tmp_path / "executed"
    (project / "my_app" / "strategy.py").write_text(f"open({str(written)!r}, 'w')\n")
    hidden = project / ".venv" / "lib"
    hidden.mkdir(parents=True)
    (hidden / "other.py").write_text("x = 1\n")
    run = tmp_path / "run"
    words = [str(project), *flags([*TINY, STEPS, "num-server-rounds=1"]), "--data", str(rows), "--workers", "1"]
    words += ["--output", str(run)]
    assert main(words) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "not executed my_app/strategy.py" in said
    assert "--ignore-code" in said
    assert "other.py" not in said
    assert not run.exists()
    assert main([*words, "--ignore-code"]) == 0
    assert not written.exists()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["model.nam=x"], ("FP1361", "did you mean 'model.name'?")),
        (["model.name"], ("FP1363", "--set")),
        (["model.quantization=3"], ("FP1369",)),
        (["num-server-rounds=0"], ("FP1368", "num-server-rounds")),
        (["num-server-rounds=many"], ("FP1367", "num-server-rounds", "int", "many")),
        (["strategy.fraction-train=2"], ("FP1370",)),
        (["train.learning-rate-min=1"], ("FP1366",)),
        (["task.name=law"], ("FP1371", "law")),
        (["dataset.name=me/rows"], ("FP1372", "--track")),
        (["model.name=tiny_lm", "model.lora.use-dora=true"], ("FP1362", "--set")),
    ],
)
def test_wrong_values_are_one_sentence(given, words, project):
    with refuses(*words):
        FlowerTuneProject.read(project, given).config("rows.jsonl")


@pytest.mark.fast
def test_a_model_that_peft_has_no_usual_targets_for_is_one_sentence(project, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "ernie"}')
    (model / "model.safetensors").touch()
    with refuses("FP4080", "ernie", "--set"):
        FlowerTuneProject.read(project, [f"model.name={model}"]).config("rows.jsonl")


@pytest.mark.fast
def test_keys_that_only_own_code_reads(project):
    file = project / "pyproject.toml"
    file.write_text(file.read_text().replace("num-server-rounds", "strategy.momentum = 0.9\nnum-server-rounds"))
    with refuses("FP1364", "strategy.momentum"):
        FlowerTuneProject.read(project)
    assert list(FlowerTuneProject.read(project, ignore_code=True).ignored) == ["strategy.momentum"]
    told = FlowerTuneProject.read(project, ["train.dynamic-data-seed=true"], ignore_code=True).ignored
    assert "continues in its examples" in told["train.dynamic-data-seed"]


@pytest.mark.fast
@pytest.mark.parametrize(("content", "words"), [("", ("FP1360",)), ("x = ", ("FP1080",)), (None, ("FP1077",))])
def test_what_is_no_project_is_one_sentence(content, words, tmp_path, capsys):
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content)
    assert main([str(tmp_path)]) == 2
    assert has_error(capsys.readouterr().err, *words)


@pytest.mark.fast
def test_data_that_are_not_there_are_one_sentence(project, capsys):
    assert main([str(project), *flags(TINY), "--data", "nowhere.jsonl"]) == 2
    assert has_error(capsys.readouterr().err, "FP1193", "nowhere.jsonl")


@pytest.mark.fast
def test_the_settings_of_a_dry_run_are_a_file(capsys):
    """Long values stay on one line."""
    import tomllib

    from fedpeft.commands.flowertune import main as flowertune

    words = ["examples/flowertune/general_nlp", "--data", "examples/instructions.jsonl", "--dry-run"]
    assert flowertune([*words, "--set", "model.name=tiny_lm", "--set", "model.quantization=0"]) == 0
    settings = capsys.readouterr().out.split("\n", 1)[1]
    assert tomllib.loads(settings[settings.index("clients =") :])["model"] == "tiny_lm"

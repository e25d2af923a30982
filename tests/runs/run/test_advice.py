"""What a run recommends for clients like its own, and says of rounds with few steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fedpeft.clients.drift import parse_drift
from fedpeft.clients.local_training import LocalTraining

from fedpeft.data.partition import PartitionStatistics
from fedpeft.parts.families import LOCAL_OPTIMIZERS
from fedpeft.simulate import main
from fedpeft.wiring import advice
from fedpeft.wiring.advice import advise_on_steps
from fedpeft.wiring.auto_defaults import resolve_auto
from fedpeft.wiring.config import RunConfig
from fedpeft.wiring.run_spec import parse_run

RUN = ["--dataset", "tiny", "--tokens", "16", "--clients", "8", "--rounds", "1", "--local-work", "steps(1)",
       "--workers", "1"]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "advised"),
    [
        (["--partition", "dirichlet(alpha=0.01)"], False),  # it is the default there
        (["--partition", "dirichlet(alpha=0.01)", "--drift", ""], True),
        (["--partition", "iid", "--drift", ""], False),
        (["--partition", "dirichlet(alpha=0.01)", "--drift", "label_shift"], False),
        (["--partition", "dirichlet(alpha=0.01)", "--head", "zero"], False),
        (["--partition", "dirichlet(alpha=0.01)", "--privacy", "secure_sum", "--cohort", "all"], False),
    ],
)
def test_a_correction_of_label_shift_is_advised_where_it_can_help(more, advised, tmp_path, capsys):
    assert main([*RUN, *more, "--output", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("--drift label_shift" in said) is advised
    assert "1 step at most: none is taken at more than 0.11" in said


@pytest.mark.parametrize(
    ("more", "advised"),
    [
        ([], False),
        (["--cohort", "0.1"], True),
        (["--cohort", "1"], False),
        (["--cohort", "0.1", "--clients", "2"], True),
        (["--cohort", "0.1", "--clients", "20"], False),
    ],
)
def test_a_share_that_comes_to_one_client_is_told(more, advised, tmp_path, capsys):
    command = ["--dataset", "tiny", "--tokens", "16", "--clients", "8", "--rounds", "1", "--workers", "1"]
    assert main([*command, *more, "--output", str(tmp_path / "run")]) == 0
    assert ("nothing is averaged: --cohort all" in " ".join(capsys.readouterr().out.split())) is advised


@pytest.mark.fast
@pytest.mark.parametrize(
    ("most", "drift", "words"),
    [
        (1, "", ["0.11 of the learning rate"]),
        (4, "la_lora", ["0.44 of the learning rate"]),
        (5, "la_lora", []),
        (1, "fedprox + la_lora", ["0.11 of the learning rate", "A never moves"]),
    ],
)
def test_it_is_said_what_few_steps_never_come_to(most, drift, words):
    optimizer = LOCAL_OPTIMIZERS.build("adamw(warmup=8)")
    setup = SimpleNamespace(training=LocalTraining(optimizer=optimizer), mechanism=None, drift=parse_drift(drift))
    told = list(advise_on_steps(setup, most))
    assert len(told) == len(words)
    assert all(word in note for word, note in zip(words, told, strict=True))


@pytest.mark.parametrize(
    ("more", "advised"),
    [
        ([], True),
        (["--local-work", "epochs(1)", "--batch-size", "128"], True),
        (["--local-work", "steps(2)"], False),
        (["--optimizer", "sgd"], False),
        (["--server-optimizer", "adam"], False),
        (["--privacy", "user_dp(noise_multiplier=4)", "--head", "zero"], False),
        (["--clients", "7"], False),
        (["--strategy", "flora"], False),
    ],
)
def test_steps_at_the_server_are_advised_where_many_clients_take_one_each(more, advised, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(advice, "MANY", 8)
    assert main([*RUN, *more, "--output", str(tmp_path / "run")]) == 0
    assert ("plain SGD on many small clients" in " ".join(capsys.readouterr().out.split())) is advised


@pytest.mark.fast
@pytest.mark.parametrize(("partition", "said"), [("auto", True), ("iid", True), ("natural", False), ("grouped", False),
                                                ("resample", True)])  # fmt: skip
def test_owners_that_a_user_names_and_a_partition_leaves_aside_are_said(partition, said):
    statistics = PartitionStatistics(8, 3, 3, 3, 0, None, None)
    for dataset, owners in (("file(path='a.csv', owner=shop)", True), ("file:a.csv", False)):
        spec = resolve_auto(parse_run(RunConfig(dataset=dataset, partition=partition)))
        kind, method = SimpleNamespace(kind="text", task="classification", classes=2), SimpleNamespace(name="lora")
        task = SimpleNamespace(targets="classes")
        setup = SimpleNamespace(**{**vars(spec), "facts": kind, "method": method, "task": task})
        told = " ".join(advice.advise(setup, statistics, 100))
        assert ("the column shop names each example's owner" in told) is (said and owners)


@pytest.mark.parametrize(
    ("more", "advised"),
    [
        (["--peft", "lora"], True),
        ([], False),
        (["--peft", "head2toe"], False),
        (["--peft", "bitfit"], False),
        (["--strategy", "flora"], False),
        (["--privacy", "secure_sum", "--cohort", "all"], False),
    ],
)
def test_a_head_on_all_blocks_is_advised_for_images(more, advised, tmp_path, capsys):
    words = [word for word in RUN if word not in ("--tokens", "16")]
    words[words.index("tiny")] = "digits"
    assert main([*words, "--model", "tiny_vision", *more, "--output", str(tmp_path / "run")]) == 0
    assert ("--peft head2toe" in " ".join(capsys.readouterr().out.split())) is advised


@pytest.mark.parametrize(
    ("most", "more", "advised"),
    [(3, [], True), (4, [], False), (3, ["--head", "discriminant"], False), (3, ["--head", "zero"], False)],
)
def test_another_head_is_advised_for_many_classes(most, more, advised, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(advice, "MANY_CLASSES", most)
    assert main([*RUN, *more, "--output", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("there are 4 classes: if some have far more examples" in said) is advised


def test_a_head_on_all_blocks_is_left_alone_where_classes_are_many(tmp_path, capsys, monkeypatch):
    """To name a head would take `lora` instead (`fedpeft.wiring.auto_defaults`)."""
    monkeypatch.setattr(advice, "MANY_CLASSES", 3)
    words = [word for word in RUN if word not in ("--tokens", "16")]
    words[words.index("tiny")] = "digits"
    assert main([*words, "--model", "tiny_vision", "--output", str(tmp_path / "run")]) == 0
    assert "--head discriminant" not in capsys.readouterr().out

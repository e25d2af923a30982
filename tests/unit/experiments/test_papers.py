"""The page of papers: one row for each cited paper, tested protocols, and the two tables that are made again."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch

from experiments.papers.__main__ import PAGE, main
from experiments.papers.message_sizes import (
    CODECS,
    LLAMA_1B,
    QUOTED,
    SMALL,
    compute_quoted,
    count_payloads,
    encode_random,
    format_measured,
    measure,
    read_results,
)
from experiments.papers.rbla.__main__ import format_table
from experiments.papers.rbla.training import (
    Protocol,
    ZeroPadding,
    create_layouts,
    create_start,
    partition_by_class,
    run,
    train_client,
)
from experiments.papers.registry import PROTOCOLS, ROOT, find_citations, find_runs, read_papers
from fedpeft.aggregation.update import pad_ranks
from fedpeft.communication.codec import parse_codec
from fedpeft.conformance.cohorts import create_random_state, create_random_updates, run_round
from fedpeft.data.rows import Rows
from fedpeft.errors import RunError
from fedpeft.parts.families import strategies
from fedpeft.wiring.config import read_config
from fedpeft.wiring.run_spec import parse_run
from tests.aggregation.one_round import MIXED, layout, pair

PAPERS = read_papers()
FILES = sorted(path.name for path in PROTOCOLS.glob("*.toml"))
FREE = {"seed", "workers", "dtype", "grid"}
"""Settings that the study varies, or that belong to its machine."""


def test_the_page_matches_the_code_and_the_results():
    assert main([]) == 0, "run python -m experiments.papers --write"


def test_each_cited_paper_has_one_row_whose_parts_exist():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if "arxiv.org/abs/" in line]
    numbers = Counter(number for row in rows for number in re.findall(r"arxiv\.org/abs/([\d.]+)", row))
    assert numbers == Counter(list(find_citations()))
    for row in rows:
        (number,) = set(re.findall(r"arxiv\.org/abs/([\d.]+)", row))
        parts = re.findall(r"\]\(\.\./((?:strategies|clients|fedpeft)/[\w/]+\.py)\)", row)
        assert parts
        for part in parts:
            assert number in (ROOT / part).read_text(encoding="utf-8"), part


def test_what_was_looked_up_states_where():
    for paper in PAPERS.values():
        known = paper.level not in ("none", "searched")
        assert known == bool(paper.title) == bool(paper.reported), paper.number
        assert bool(paper.read) == (paper.level != "none"), paper.number
        assert bool(paper.protocol) == bool(paper.differs), paper.number


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ('"2305.05644" = {level = "memory"}', "memory"),
        ('"2305.05644" = {setting = "x"}', "setting"),
        ('"2403.12313" = {level = "none"}', "2403.12313"),
    ],
)
def test_wrong_entries_are_refused(tmp_path, details, message):
    path = tmp_path / "papers.toml"
    path.write_text(f'[names]\n"2305.05644" = "FedIT"\n[details]\n{details}\n', encoding="utf-8")
    with pytest.raises(RunError, match=message):
        read_papers(path)


@pytest.mark.parametrize("name", FILES)
def test_a_protocol_is_a_run_with_a_part_of_its_paper(name):
    config = read_config(PROTOCOLS / name)
    parse_run(config)
    (number,) = re.findall(r"arXiv ([\d.]+)\)", (PROTOCOLS / name).read_text(encoding="utf-8").splitlines()[0])
    settings = " ".join(map(str, asdict(config).values()))
    assert any(re.search(rf"\b{module.stem}\b", settings) for module in find_citations()[number])


def test_each_protocol_stands_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in FILES if name not in text] == []
    assert {paper.protocol for paper in PAPERS.values() if paper.protocol} <= set(FILES)


@pytest.mark.parametrize("number", [paper.number for paper in PAPERS.values() if paper.measured])
def test_a_bold_number_has_the_settings_of_its_protocol(number):
    paper = PAPERS[number]
    settings = asdict(read_config(PROTOCOLS / paper.protocol))
    for run_config in (result.config for result in find_runs(paper.measured.study, paper.measured.point)):
        for key in run_config.keys() - FREE:
            assert settings[key] in (run_config[key], "auto"), key


def test_all_cells_of_nvflares_table_follow_from_the_shapes():
    whole = compute_quoted(LLAMA_1B, QUOTED[0])[0]
    for row in QUOTED:
        values, meta = compute_quoted(LLAMA_1B, row)
        cells = (round(values, 2), round(meta, 2), round(100 * (values + meta) / whole, 2))
        assert cells == (row.size, row.meta, row.share), row.precision


def test_sizes_are_lengths_of_payloads():
    """The codec's own bytes are those of one payload per tensor, since no tensor is cut in so small a model."""
    record = measure(SMALL, "fp32")
    tensors = SMALL.list_tensors().values()
    count = sum(int(np.prod(shape)) for shape in tensors)
    assert (record["parameters"], record["payloads"]) == (count, len(tensors))
    assert 4 * count < record["bytes"] < 4 * count + 100 * len(tensors)
    assert record["bytes"] == sum(encode_random(parse_codec("fp32"), shape) for shape in tensors)
    assert f"{record['bytes']:,} |" in format_measured([record])
    assert "about" in format_measured([measure(SMALL, "small")])


@pytest.mark.parametrize("codec", ["int8", "small"])
def test_random_tensors_of_one_shape_differ_by_less_than_a_fifth_of_a_percent(codec):
    lengths = [encode_random(parse_codec(codec), (512, 1024), seed) for seed in range(3)]
    assert len(set(lengths)) > 1
    assert max(lengths) - min(lengths) < 0.002 * min(lengths)


def test_large_tensors_travel_in_parts():
    payloads = count_payloads(LLAMA_1B)
    assert max(int(np.prod(shape)) for shape in payloads) == 2**24
    assert sum(int(np.prod(shape)) * times for shape, times in payloads.items()) == 1_498_482_688
    assert payloads[5376, 2048] == 2


def test_recorded_sizes_are_of_the_whole_model():
    records = read_results()
    assert [record["codec"] for record in records] == [codec for codec in CODECS if codec in json.dumps(records)]
    assert {record["parameters"] for record in records} == {1_498_482_688}
    (exact,) = (record for record in records if record["codec"] == "fp32")
    assert 0 < exact["bytes"] - 4 * exact["parameters"] < 100 * exact["payloads"]


def draw_images(examples=60):
    """Return images of 16 pixels whose class is the place of the bright one."""
    labels = np.arange(examples) % 10
    images = np.zeros((examples, 4, 4), np.uint8)
    images.reshape(examples, -1)[np.arange(examples), labels] = 255
    return Rows(images, labels.astype(np.int64))


def test_client_k_holds_the_classes_up_to_k():
    labels = draw_images(200).labels
    clients = partition_by_class(labels)
    assert [sorted(set(labels[rows])) for rows in clients] == [list(range(k + 1)) for k in range(10)]
    assert sorted(np.concatenate(clients)) == list(range(200))


@pytest.mark.parametrize("base", ["frozen", "trained"])
def test_a_round_trains_what_its_base_says(base):
    protocol = Protocol("rbla", base, 0, rounds=1, epochs=1, batch_size=8)
    names = frozenset(name for form in create_layouts(16, base) for name in form.names)
    start = create_start(16, 0)
    rows = draw_images(20)
    x = torch.from_numpy(np.array(rows.inputs)).reshape(20, -1).float() / 255
    after = train_client(start, names, x, torch.from_numpy(rows.labels), protocol, 0)
    changed = {name for name in start if not torch.equal(start[name], after[name])}
    assert changed == names
    assert ("fc1.W" in changed) == (base == "trained")


@pytest.mark.parametrize("rule", ["rbla", "zero_padding", "flexlora", "equal_ranks"])
def test_each_rule_learns_and_repeats(rule):
    protocol = Protocol(rule, "frozen", 1, rounds=2, epochs=3, batch_size=8, learning_rate=0.2)
    rows = draw_images()
    once, again = ([*run(protocol, rows, rows)] for _ in range(2))
    assert once == again
    assert once[-1] > 0.1


def test_zero_padding_is_the_mean_of_padded_factors_and_rbla_is_not():
    updates = create_random_updates(
        ZeroPadding(), start := create_random_state(layout, 1, torch.float64), layout, MIXED, 2, 1, 0.5
    )
    padded = run_round(ZeroPadding(), start, layout, updates).state
    shares = [u.weight / sum(v.weight for v in updates) for u in updates]
    mean = sum(p * pad_ranks(u.get_trained(pair.A), start[pair.A]) for p, u in zip(shares, updates, strict=True))
    assert torch.allclose(padded[pair.A], mean)
    owners = run_round(strategies.build("rbla"), start, layout, updates).state
    assert owners[pair.A][-1].norm() > padded[pair.A][-1].norm()


def test_the_table_shows_means_by_rule_and_base():
    made = [
        {"rule": "rbla", "base": "frozen", "seed": seed, "accuracies": [0.1, last]}
        for seed, last in enumerate((0.8, 0.9))
    ]
    assert "| frozen | rbla | 2 | 85.0 | 80.0, 90.0 | 85.0 |" in format_table(made)

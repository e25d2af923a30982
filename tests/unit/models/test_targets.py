"""Numbers and several labels a row: losses, measures and closed-form heads, against slow independent computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from fedpeft.aggregation.head_start import convert_to_summands
from fedpeft.aggregation.update import Fold
from fedpeft.models.target_measures import measure_classes, measure_labels, measure_numbers
from fedpeft.parts.families import HEADS, TASKS
from fedpeft.simulation.probe import ITERATIONS, STRENGTHS, choose_strength
from fedpeft.simulation.target_probes import fit_number_probe, label_probe
from tests.refusals import refuses

REGRESSION = TASKS.build("regression(mean=500, deviation=80)")
MULTI_LABEL = TASKS.build("multi_label")


def test_squared_errors_of_standardised_numbers():
    draw = np.random.default_rng(0)
    numbers, said = draw.normal(500, 80, 20), draw.normal(0, 1, (20, 1))
    from fedpeft.data.rows import Rows

    labels = REGRESSION.labels(Rows(["x"] * 20, numbers))
    found = REGRESSION.losses(torch.tensor(said), {"labels": torch.tensor(labels)})
    for row in range(20):
        slow = ((500 + 80 * said[row, 0] - numbers[row]) / 80) ** 2
        assert float(found.sums[row]) == pytest.approx(slow, rel=1e-4)
        assert float(found.correct[row]) == pytest.approx(1 - slow, rel=1e-3, abs=1e-4)
    assert found.counts.tolist() == [1.0] * 20
    assert REGRESSION.values(torch.tensor(said))[3, 0] == pytest.approx(500 + 80 * said[3, 0])


def test_skill_is_r2_where_the_moments_are_those_of_the_rows():
    draw = np.random.default_rng(1)
    numbers = draw.normal(3, 2, 50)
    task = TASKS.build(f"regression(mean={numbers.mean()}, deviation={numbers.std()})")
    said = (numbers - numbers.mean()) / numbers.std() + draw.normal(0, 0.5, 50)
    labels = (numbers - numbers.mean()) / numbers.std()
    found = task.losses(torch.tensor(said)[:, None], {"labels": torch.tensor(labels)})
    told = task.measures(said[:, None], numbers, ["y"])
    assert float(found.correct.mean()) == pytest.approx(told["r2"], abs=1e-9)
    assert told["rmse"] == pytest.approx(numbers.std() * math.sqrt(float(found.sums.mean())))


def test_measures_of_classes_by_their_definitions():
    truth, said = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 0, 1, 0, 2])
    found = measure_classes(said, truth, ["a", "no rows", "c"])
    assert found["by_class"] == {"a": 0.75, "c": 0.5}
    assert found["balanced_accuracy"] == pytest.approx(0.625)
    assert found["most_frequent"] == {"name": "a", "share": pytest.approx(4 / 6)}
    unnamed = measure_classes(said, truth, [""] * 3)
    assert unnamed["balanced_accuracy"] == pytest.approx(0.625)
    assert "f1" not in found  # which class would it be?


def test_glues_measures_of_two_classes_by_their_definitions():
    truth, said = np.array([0, 0, 0, 1, 1, 1, 1, 1]), np.array([0, 1, 1, 1, 1, 1, 1, 0])
    found = measure_classes(said, truth, ["no", "yes"])
    right_yes, right_no, false_yes, false_no = 4, 1, 2, 1
    product = (right_yes + false_yes) * (right_yes + false_no) * (right_no + false_yes) * (right_no + false_no)
    expected = (right_yes * right_no - false_yes * false_no) / math.sqrt(product)
    assert found["matthews"] == pytest.approx(expected)
    assert found["f1"] == pytest.approx(2 * right_yes / (2 * right_yes + false_yes + false_no))
    constant = measure_classes(np.zeros(8, np.int64), truth, ["no", "yes"])
    assert (constant["matthews"], constant["f1"]) == (0, 0)


def test_measures_of_numbers_by_their_definitions():
    draw = np.random.default_rng(2)
    truth, said = draw.normal(size=30), draw.normal(size=30)
    found = measure_numbers(said, truth)
    errors = [s - t for s, t in zip(said, truth, strict=True)]
    assert found["mae"] == pytest.approx(sum(map(abs, errors)) / 30)
    assert found["rmse"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / 30))
    mean = sum(truth) / 30
    assert found["r2"] == pytest.approx(1 - sum(e * e for e in errors) / sum((t - mean) ** 2 for t in truth))

    def correlated(a, b):
        a, b = a - a.mean(), b - b.mean()
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))

    assert found["pearson"] == pytest.approx(correlated(said, truth))
    ranks = [np.array([sum(o < x for o in v) for x in v], float) for v in (said, truth)]
    assert found["spearman"] == pytest.approx(correlated(*ranks))
    assert measure_numbers(np.ones(3), np.arange(3.0))["pearson"] is None
    assert measure_numbers(np.ones(1), np.ones(1))["r2"] is None


def test_binary_cross_entropy_of_each_label():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 1]])
    found = MULTI_LABEL.losses(logits, {"labels": labels.float()})
    for row in range(6):
        slow = right = 0.0
        for label in range(3):
            p = 1 / (1 + math.exp(-float(logits[row, label])))
            slow -= math.log(p if labels[row, label] else 1 - p)
            right += (p >= 0.5) == bool(labels[row, label])
        assert float(found.sums[row]) == pytest.approx(slow)
        assert float(found.correct[row]) == right
    assert found.counts.tolist() == [3.0] * 6


def test_measures_of_labels_by_their_definitions():
    draw = np.random.default_rng(3)
    truth, scores = draw.random((40, 3)) < [0.5, 0.2, 0.0], draw.normal(size=(40, 3))
    found = measure_labels(scores, truth, ["a", "b", "never"])
    said = scores >= 0

    def f1(t, s):
        both, either = (t & s).sum(), t.sum() + s.sum()
        return 2 * both / either if either else 0.0

    assert found["micro_f1"] == pytest.approx(f1(truth.ravel(), said.ravel()))
    assert found["by_label"] == {
        n: pytest.approx(f1(truth[:, i], said[:, i])) for i, n in enumerate(["a", "b", "never"])
    }
    assert found["macro_f1"] == pytest.approx(np.mean([*found["by_label"].values()]))
    assert found["exact"] == pytest.approx(np.mean([(t == s).all() for t, s in zip(truth, said, strict=True)]))

    def precision(t, s):  # the mean, over the rows that are right, of the share of right ones down to each
        order = np.argsort(-s)
        hits = t[order]
        return np.mean([hits[: i + 1].mean() for i in range(len(hits)) if hits[i]])

    each = [precision(truth[:, i], scores[:, i]) for i in (0, 1)]  # a label that no row has is left out
    assert found["average_precision"] == pytest.approx(np.mean(each))
    assert found["micro_average_precision"] == pytest.approx(precision(truth.ravel(), scores.ravel()))


WIDTH = 6


def summed(head, features, labels, shards, outputs):
    total = Fold()
    for rows in shards:
        total.add(convert_to_summands(head, head.statistics(features[rows], labels[rows], outputs)), 1.0)
    return head.solve(total.sums, WIDTH, outputs)


@pytest.mark.parametrize("send", ["moments", "factor"])
@pytest.mark.parametrize("targets", ["numbers", "labels"])
def test_the_head_is_the_ridge_regression_of_the_pooled_data(targets, send):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, WIDTH, generator=generator, dtype=torch.float64)
    numbers = features @ torch.arange(WIDTH).double() + torch.randn(60, generator=generator)
    labels = numbers if targets == "numbers" else torch.stack([numbers > 0, numbers > 3], 1)
    outputs = 1 if targets == "numbers" else 2
    head = HEADS.build(f"ridge(strength=0.001, send={send})").fit_to_targets(targets)
    apart = torch.argsort(numbers).split(20)  # no client has what another has
    found = summed(head, features, labels, [part.numpy() for part in apart], outputs)
    penalty = 1e-3 * float((features**2).mean(0).sum()) / WIDTH * 60
    slow = Ridge(alpha=penalty).fit(features.numpy(), labels.numpy())
    said = features @ found["head.weight"].T + found["head.bias"]
    expected = torch.tensor(slow.predict(features.numpy())).reshape(60, outputs)
    expected = expected if targets == "numbers" else 8 * (expected - 0.5)
    assert torch.allclose(said, expected, atol=1e-6)
    assert found["head.weight"].shape == (outputs, WIDTH)
    assert found["head.bias"].view(-1).view(torch.uint8) is not None, "as a checkpoint reads it"


@pytest.mark.parametrize("name", ["centroids", "private_centroids", "private_ridge"])
@pytest.mark.parametrize("targets", ["numbers", "labels"])
def test_starts_from_classes_are_refused(name, targets):
    with refuses("FP1013", name, "--head"):
        HEADS.build(name).fit_to_targets(targets)
    assert not HEADS.build("zero").fit_to_targets(targets).exchanges


def test_a_told_head_speaks_in_the_labels_unit():
    head = torch.nn.Linear(4, 1)
    features = torch.randn(5, 4)
    told = REGRESSION.export_head(head.state_dict())
    assert torch.allclose(
        features @ told["weight"].T + told["bias"], REGRESSION.values(head(features)), rtol=1e-5, atol=1e-3
    )


def test_probes_find_what_is_there():
    draw = np.random.default_rng(5)
    features = draw.normal(size=(300, 8))
    numbers = 100 + 10 * features @ draw.normal(size=8) + draw.normal(size=300)
    cuts = slice(0, 200), slice(200, 250), slice(250, 300)
    strength, said = fit_number_probe(*[(features[c], numbers[c]) for c in cuts])
    assert strength > 0
    assert measure_numbers(said[:, 0], numbers[cuts[2]])["r2"] > 0.95
    labels = np.stack([numbers > 100, numbers > 110, numbers < -1e9], 1).astype(np.float32)
    parts = [(features[c], labels[c]) for c in cuts]
    strength, logits = label_probe(STRENGTHS, choose_strength, ITERATIONS, *parts)
    assert strength in STRENGTHS
    assert ((logits >= 0) == (labels[cuts[2]] > 0)).mean() > 0.93
    assert (logits[:, 2] < 0).all(), "a label that no row has is not said"

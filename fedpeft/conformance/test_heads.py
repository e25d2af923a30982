"""Requirements of every start of the head: declared shapes of statistics, sums over clients, and a head that fits."""

from __future__ import annotations

import pytest
import torch

from fedpeft.aggregation.head_start import VARIANCE, HidesClasses, WeighsErrors, check_solved, convert_to_summands
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.conformance import list_tested_parts
from fedpeft.conformance.test_parts import build_with_defaults
from fedpeft.parts.families import HEADS
from fedpeft.rounds.acceptance import check_statistics

WIDTH, CLASSES, CLIENTS = 6, 4, (7, 1, 12)
NAMES = list_tested_parts(HEADS)


def create_rows(count, seed):
    """Return features (count, WIDTH) around a mean of each class, and labels (count,), none of the last class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES - 1, (count,), generator=generator)
    means = torch.eye(CLASSES, WIDTH) * 3
    return means[labels] + 0.3 * torch.randn(count, WIDTH, generator=generator), labels


@pytest.fixture(params=NAMES)
def head(request):
    made = build_with_defaults(HEADS, request.param)
    if not made.exchanges:
        pytest.skip("nothing is exchanged")
    return made


def sum_statistics(head, of):
    """Return the sums of the clients' statistics."""
    total = {}
    for features, labels in of:
        for name, tensor in convert_to_summands(head, head.statistics(features, labels, CLASSES)).items():
            total[name] = total.get(name, 0) + tensor.double()
    return total


def start():
    return {"head.weight": torch.zeros(CLASSES, WIDTH), "head.bias": torch.zeros(CLASSES)}


def test_statistics_have_the_names_and_shapes_that_it_says_and_travel(head):
    for seed, count in enumerate(CLIENTS):
        features, labels = create_rows(count, seed)
        found, shapes = head.statistics(features, labels, CLASSES), head.shapes(WIDTH, CLASSES, count)
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes
        check_statistics(found, shapes, count)
        for codec in head.codecs.values():
            weights = head.importance(found) if isinstance(head, WeighsErrors) else {}
            payload = parse_codec(codec).encode(found, seed=1, weights=weights)
            assert decode(payload, shapes).keys() == shapes.keys()


def test_the_sums_of_clients_are_those_of_all_rows(head):
    """Else the head depends on how rows lie on clients."""
    clients = [create_rows(count, seed) for seed, count in enumerate(CLIENTS)]
    whole = tuple(torch.cat(part) for part in zip(*clients, strict=True))
    apart, together = sum_statistics(head, clients), sum_statistics(head, [whole])
    assert apart.keys() == together.keys()
    for name, tensor in apart.items():
        torch.testing.assert_close(tensor, together[name], rtol=1e-4, atol=1e-4)


def test_it_solves_for_a_finite_head_that_fits_a_class_without_rows_or_not(head):
    total = sum_statistics(head, [create_rows(count, seed) for seed, count in enumerate(CLIENTS)])
    made = head.solve(total, WIDTH, CLASSES)
    check_solved(head, made, start())
    counts = head.class_counts(total)
    assert tuple(counts.shape) in ((CLASSES,), (0,))
    assert bool(counts.isfinite().all())
    hidden = head.find_hidden_classes(total) if isinstance(head, HidesClasses) else []
    assert all(0 <= label < CLASSES for label in hidden)


def test_it_tells_classes_apart_that_lie_apart(head):
    if head.bounded:
        pytest.skip("without its noise it is not what it is in a run")
    features, labels = create_rows(60, 5)
    made = head.solve(sum_statistics(head, [(features, labels)]), WIDTH, CLASSES)
    said = (features.double() @ made["head.weight"].double().T + made["head.bias"].double()).argmax(1)
    assert float((said == labels).double().mean()) > 0.8


def test_a_row_of_a_bounded_head_changes_the_sums_by_at_most_one(head):
    """The noise is drawn to hide so much, and no more."""
    if not head.bounded:
        pytest.skip("it promises no bound")
    features, labels = create_rows(40, 3)
    for row in range(40):
        of = head.statistics(100.0 * features[row : row + 1], labels[row : row + 1], CLASSES)
        assert sum(float(t.double().square().sum()) for name, t in of.items() if name != VARIANCE) <= 1 + 1e-6

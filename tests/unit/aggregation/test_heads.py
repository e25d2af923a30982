from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi
from sklearn.linear_model import Ridge

from fedpeft.aggregation.bounded_rows import compute_noise_length
from fedpeft.aggregation.cross_validation import STRENGTHS, choose_strength
from fedpeft.aggregation.head_start import check_solved, convert_to_summands
from fedpeft.aggregation.second_moments import encode_targets, solve_system
from fedpeft.aggregation.update import Fold
from fedpeft.communication.codec import parse_codec
from fedpeft.communication.decoding import decode
from fedpeft.parts.families import HEADS
from tests.refusals import refuses

WIDTH, CLASSES = 6, 3


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % CLASSES
    means = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    return means[labels] + torch.randn(90, WIDTH, generator=generator, dtype=torch.float64), labels


def summed(head, features, labels, shards):
    total = Fold()
    for rows in shards:
        total.add(convert_to_summands(head, head.statistics(features[rows], labels[rows], CLASSES)), 1.0)
    return head.solve(total.sums, WIDTH, CLASSES)


@pytest.mark.parametrize("name", [n for n in HEADS.names if HEADS.build(n).exchanges])
def test_the_head_is_that_of_the_pooled_data_whatever_the_partition(name, data):
    features, labels = data
    head = HEADS.build(name)
    by_class = [np.flatnonzero(labels.numpy() == c) for c in range(CLASSES)]
    pooled = summed(head, features, labels, [np.arange(90)])
    skewed = summed(head, features, labels, by_class)
    for tensor in pooled:
        assert torch.allclose(pooled[tensor], skewed[tensor], rtol=1e-9, atol=1e-12)
    accuracy = ((features @ pooled["head.weight"].T + pooled["head.bias"]).argmax(1) == labels).double().mean()
    assert accuracy > 0.7
    assert {n: tuple(t.shape) for n, t in head.statistics(features, labels, CLASSES).items()} == head.shapes(
        WIDTH, CLASSES, 90
    )


def test_ridge_equals_scikit_learns(data):
    features, labels = data
    head = HEADS.build("ridge(strength=0.01, scale=5.0)")
    got = summed(head, features, labels, [np.arange(90)])
    one_hot = np.eye(CLASSES)[labels.numpy()]
    penalty = 0.01 * float((features**2).sum(0).mean())
    expected = Ridge(alpha=penalty).fit(features.numpy(), 5.0 * one_hot)
    assert np.allclose(got["head.weight"].numpy(), expected.coef_, rtol=1e-8)
    assert np.allclose(got["head.bias"].numpy(), expected.intercept_, rtol=1e-8)


@pytest.mark.parametrize("rows", [3, 30])
def test_the_factor_of_the_moments_gives_the_same_head(rows, data):
    """Also where a client has fewer rows than there are features."""
    features, labels = data
    shards = [np.arange(i, i + rows) for i in range(0, 90 - rows + 1, rows)]
    plain, factored = HEADS.build("ridge"), HEADS.build("ridge").compact()
    made = factored.statistics(features[:rows], labels[:rows], CLASSES)
    assert {n: tuple(t.shape) for n, t in made.items()} == factored.shapes(WIDTH, CLASSES, rows)
    assert len(made["labels"]) == min(rows, WIDTH + 1 + CLASSES)
    one, other = (summed(head, features, labels, shards) for head in (plain, factored))
    for name in one:
        assert torch.allclose(one[name], other[name], rtol=1e-8, atol=1e-10)


def skewed():
    """Features with a large common part and directions of little variance, as a language model's have."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -2, 24, dtype=torch.float64)
    labels = torch.arange(400) % CLASSES
    means = torch.randn(CLASSES, 24, generator=generator, dtype=torch.float64)
    return 1.0 + spread * (means[labels] + torch.randn(400, 24, generator=generator, dtype=torch.float64)), labels


def sent(head, features, labels, codec):
    """Return the head solved from the decoded statistics of 20 clients, and from the exact ones."""
    width, coarse, exact = features.shape[1], Fold(), Fold()
    for k in range(20):
        rows = np.arange(20 * k, 20 * k + 20)
        made = head.statistics(features[rows].float(), labels[rows], CLASSES)
        payload = parse_codec(codec).encode(made, seed=k, weights=head.importance(made))
        coarse.add(convert_to_summands(head, decode(payload, head.shapes(width, CLASSES, 20))), 1.0)
        exact.add(convert_to_summands(head, made), 1.0)
    return (head.solve(f.sums, width, CLASSES) for f in (coarse, exact))


def test_the_factor_bears_coarse_codes_and_the_moments_do_not():
    features, labels = skewed()
    errors = []
    for head in (HEADS.build("ridge"), HEADS.build("ridge").compact()):
        coarse, true = sent(head, features, labels, "adaptive(bits=6.0, per=row) | rans")
        errors.append(float((coarse["head.weight"] - true["head.weight"]).norm() / true["head.weight"].norm()))
    assert errors[1] < 0.25 * errors[0]


def test_the_codec_of_lossy_runs_leaves_the_predictions():
    """On features as an encoder's: many entries, small beside the constant, a row's length in few directions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % CLASSES
    spread = 0.2 * torch.logspace(0, -1.5, 64, dtype=torch.float64)
    means = torch.randn(CLASSES, 64, generator=generator, dtype=torch.float64)
    features = spread * (means[labels] + torch.randn(400, 64, generator=generator, dtype=torch.float64))
    head = HEADS.build("ridge").compact()
    coarse, true = (
        (features @ solved["head.weight"].T + solved["head.bias"]).argmax(1)
        for solved in sent(head, features, labels, head.codec(""))
    )
    assert (coarse == true).double().mean() > 0.9
    assert (true == labels).double().mean() > 0.9


def test_what_a_coarse_code_has_lost_leaves_a_finite_head():
    """At 2 bits nothing of the constant arrives here, and without it the regression has no inverse."""
    features, labels = skewed()
    head = HEADS.build("ridge").compact()
    coarse, _ = sent(head, features, labels, head.codec(""))
    assert all(tensor.isfinite().all() for tensor in coarse.values())
    nothing = {"moments": (25 * 26 // 2,), "sums": (25, CLASSES), "squares": (CLASSES,)}
    lost = head.solve({name: torch.zeros(shape) for name, shape in nothing.items()}, 24, CLASSES)
    assert not any(tensor.any() for tensor in lost.values())


@pytest.mark.parametrize("constant", [1.0, 0.0])
def test_a_wide_system_has_the_same_solution(constant, monkeypatch):
    """Factored where it can be; where nothing is left of the constant, the least norm as ever."""
    drawn = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 20, generator=drawn).double(), torch.randint(3, (60,), generator=drawn)
    head = HEADS.build("ridge")
    total = head.statistics(x, y, 3)
    square = torch.zeros(21, 21, dtype=torch.float64)
    square[tuple(torch.triu_indices(21, 21))] = total["moments"]
    square[:, -1] *= constant
    total["moments"] = square[tuple(torch.triu_indices(21, 21))]
    usual = head.solve(total, 20, 3)
    asked = []
    original = torch.cholesky_solve
    monkeypatch.setattr(torch, "cholesky_solve", lambda *given: asked.append(1) or original(*given))
    monkeypatch.setattr("fedpeft.aggregation.second_moments.WIDE", 4)
    wide = head.solve(total, 20, 3)
    assert bool(asked) is bool(constant)
    for name in usual:
        torch.testing.assert_close(wide[name], usual[name], rtol=1e-9, atol=1e-9)


def test_a_wide_system_with_a_feature_that_others_determine_is_not_factored(monkeypatch):
    """The second feature is the first, but for a pivot of 1e-12 in units of its moment."""
    system = torch.eye(3, dtype=torch.float64)
    system[0, 1] = system[1, 0] = (1 - 1e-12) ** 0.5
    monkeypatch.setattr("fedpeft.aggregation.second_moments.WIDE", 2)
    asked = []
    monkeypatch.setattr(torch, "cholesky_solve", lambda *given: asked.append(given) or given[0])
    found = solve_system(system, torch.ones(3, 1, dtype=torch.float64))
    assert not asked
    assert found.flatten().tolist() == pytest.approx([0.5, 0.5, 1.0], abs=0.01)


def of_few(kind, rows, width=50):
    """Rows of features most of which say nothing; and as many again, unseen."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2 * rows, width, generator=generator, dtype=torch.float64)
    said = features[:, :3] + 0.7 * torch.randn(2 * rows, 3, generator=generator, dtype=torch.float64)
    labels = {"classes": said.argmax(1), "labels": said > 0.3, "numbers": said[:, 0]}[kind]
    return (features[:rows], labels[:rows]), (features[rows:], labels[rows:])


@pytest.mark.parametrize("rows", [70, 24])
@pytest.mark.parametrize("send", ["moments", "factor"])
@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_of_few_rows_the_strength_is_that_of_least_generalised_cross_validation(kind, send, rows):
    """Against the score of rows and matrices as its paper has them."""
    (features, labels), unseen = of_few(kind, rows)
    head = HEADS.build(f"ridge(send={send})").fit_to_targets(kind)
    outputs = 1 if kind == "numbers" else 3
    halves = slice(rows // 2), slice(rows // 2, rows)
    of_halves = [convert_to_summands(head, head.statistics(features[half], labels[half], outputs)) for half in halves]
    total = {name: of_halves[0][name] + of_halves[1][name] for name in of_halves[0]}
    x, y = torch.nn.functional.pad(features, (0, 1), value=1.0), encode_targets(labels, outputs)
    scores = {}
    for strength in STRENGTHS:
        penalty = strength * features.square().sum(0).mean() * torch.eye(51, dtype=torch.float64)
        penalty[-1, -1] = 0
        hat = x @ torch.linalg.solve(x.T @ x + penalty, x.T)
        if hat.trace() <= 0.75 * rows:
            scores[strength] = float((y - hat @ y).square().sum() / (rows - hat.trace()) ** 2)
    best = min(scores, key=scores.get)
    made = head.solve(total, 50, outputs)
    same = replace(head, strength=float(best)).solve(total, 50, outputs)
    torch.testing.assert_close(made["head.weight"], same["head.weight"])

    def error(head):
        solved, (others, truth) = head.solve(total, 50, outputs), unseen
        found = (others @ solved["head.weight"].T + solved["head.bias"]) / head.scale
        return float((found - encode_targets(truth, outputs)).square().mean())

    assert STRENGTHS[0] < best
    assert error(head) < {70: 0.6, 24: 1.0}[rows] * error(replace(head, strength=1e-3))


@pytest.mark.parametrize("width", [1, 2, 9, 40])
@pytest.mark.parametrize("rows", [0, 1, 15])
@pytest.mark.parametrize("sent", ["honest", "negative", "anything", "without the constant", "of no size"])
def test_whatever_clients_send_a_strength_is_chosen(sent, rows, width):
    """Sums of nothing, and sums that are of no rows at all, which a hostile client can send."""
    drawn = torch.Generator().manual_seed(rows + width)
    x = torch.cat([torch.randn(rows, width, generator=drawn), torch.ones(rows, 1)], 1).double()
    y = torch.randn(rows, 2, generator=drawn).double()
    moments, sums, squares = x.T @ x, x.T @ y, y.square().sum(0)
    if sent == "negative":
        moments = -moments
    elif sent == "anything":
        moments = moments + 1e6 * torch.randn(width + 1, width + 1, generator=drawn).double()
        moments = moments + moments.T
    elif sent == "without the constant":
        moments[-1], moments[:, -1] = 0.0, 0.0
    elif sent == "of no size":
        moments = 1e-300 * moments
    upper = moments[tuple(torch.triu_indices(width + 1, width + 1))]
    made = HEADS.build("ridge").solve({"moments": upper, "sums": sums, "squares": squares}, width, 2)
    assert all(tensor.isfinite().all() for tensor in made.values())


def test_of_many_rows_the_strength_is_the_usual_one(data):
    features, labels = data
    chosen, usual = HEADS.build("ridge"), HEADS.build("ridge(strength=0.001)")
    assert "squares" not in usual.shapes(WIDTH, CLASSES, 90)
    one, other = (summed(head, features, labels, [np.arange(90)]) for head in (chosen, usual))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_features_that_are_zero_get_the_largest_strength():
    moments = torch.zeros(3, 3, dtype=torch.float64)
    moments[-1, -1] = 5
    assert choose_strength(moments, torch.ones(3, 2).double(), torch.ones(2).double()) == STRENGTHS[-1]


def test_centroids_point_from_the_mean_to_each_class_and_have_the_scale_at_the_typical_length(data):
    features, labels = data
    head = summed(HEADS.build("centroids(scale=5)"), features, labels, [np.arange(90)])
    means = torch.stack([features[labels == c].mean(0) for c in range(CLASSES)])
    directions = torch.nn.functional.normalize(means - features.mean(0), dim=1)
    torch.testing.assert_close(head["head.weight"], 5 * directions / features.norm(dim=1).mean())
    torch.testing.assert_close(head["head.bias"], -head["head.weight"] @ features.mean(0))
    without = summed(HEADS.build("centroids"), features[labels > 0], labels[labels > 0], [np.arange(60)])
    assert not without["head.weight"][0].any()
    assert without["head.weight"][1:].any(1).all()


@pytest.mark.parametrize("width", [16, 64, 384])
def test_two_percent_of_noise_is_longer_than_its_bound(width):
    assert compute_noise_length(width) == pytest.approx(chi.ppf(0.98, width), rel=0.02)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"head.bias": None}, "FP1018"),
        ({"head.more": torch.zeros(1)}, "FP1019"),
        ({"head.weight": torch.zeros(WIDTH, CLASSES)}, "FP1020"),
        ({"head.weight": torch.full((CLASSES, WIDTH), float("nan"))}, "FP1021"),
    ],
)
def test_a_head_of_another_form_is_refused(change, code):
    start = {"head.weight": torch.zeros(CLASSES, WIDTH), "head.bias": torch.zeros(CLASSES), "other": torch.zeros(2)}
    right = {name: start[name] for name in ("head.weight", "head.bias")}
    check_solved(HEADS.build("ridge"), right, start)
    made = {name: tensor for name, tensor in (right | change).items() if tensor is not None}
    with refuses(code, "ridge"):
        check_solved(HEADS.build("ridge"), made, start)


def test_strengths_go_from_a_thousandth_to_three_with_four_in_a_decade():
    assert STRENGTHS[[0, -1]] == pytest.approx([1e-3, 10**0.5])
    assert np.log10(STRENGTHS[1:] / STRENGTHS[:-1]) == pytest.approx(0.25)

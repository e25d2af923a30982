"""Where clients disagree and what adapters have learned, from factors: as from dense matrices."""

import math

import numpy as np
import pytest
import torch

from fedpeft.aggregation.aggregator import AggregationResult
from fedpeft.aggregation.update import Update
from fedpeft.peft.adapter import AdapterShape, Layout, TensorSpec
from fedpeft.peft.low_rank import LowRank
from fedpeft.trust.disagreement import DisagreementAggregator, compute_basis, compute_mean_overlap, restore_cosines
from fedpeft.trust.spectra import compute_intruder_share, compute_spectra, decompose, remove_leading, shrink_equally

OUT, IN, RANK = 12, 9, 4
FORM = AdapterShape(RANK, 8.0)
MODULES = ("one", "two")
FACTORS = [
    TensorSpec(f"{m}.{factor}", shape, role, m)
    for m in MODULES
    for factor, shape, role in (("A", (RANK, IN), "lora_A"), ("B", (OUT, RANK), "lora_B"))
]
LAYOUT = Layout((*FACTORS, TensorSpec("head.weight", (3, OUT), "head", "head")), FORM)


def drawn(seed, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(s, generator=random, dtype=torch.float64) for n, s in LAYOUT.shapes.items()}


def updates(count=4):
    start = drawn(0)
    return [Update(k, float(k + 1), FORM, start, drawn(k + 1, 0.1)) for k in range(count)]


def dense(update):
    """Return a client's change, as one vector per layer."""
    found = {}
    for m in MODULES:
        before = update.received[f"{m}.B"] @ update.received[f"{m}.A"]
        found[m] = ((update.get_trained(f"{m}.B") @ update.get_trained(f"{m}.A") - before) * FORM.scale).flatten()
    return found | {"head.weight": update.delta["head.weight"].flatten()}


class Nothing:
    def add(self, update):
        self.seen = update.client

    def finish(self, memory):
        return AggregationResult({}, memory)


def watched(given):
    watch = DisagreementAggregator(Nothing(), LAYOUT)
    for update in given:
        watch.add(update)
    return watch.finish({}).disagreement


def test_shares_and_cosines_are_those_of_dense_changes():
    given = updates()
    found = watched(given)
    shares = np.array([u.weight for u in given]) / sum(u.weight for u in given)
    layers = {m: torch.stack([dense(u)[m] for u in given]).numpy() for m in (*MODULES, "head.weight")}
    whole = np.concatenate(list(layers.values()), axis=1)

    def cancelled(rows):
        return 1 - np.linalg.norm(shares @ rows) / (shares @ np.linalg.norm(rows, axis=1))

    assert found.canceled == pytest.approx(cancelled(whole), abs=1e-9)
    for m, rows in layers.items():
        assert found.by_module[m] == pytest.approx(cancelled(rows), abs=1e-9)
        mean = shares @ rows
        expected = rows @ mean / (np.linalg.norm(rows, axis=1) * np.linalg.norm(mean))
        np.testing.assert_allclose(found.agreement[m].numpy(), expected, atol=1e-9)
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(found.cosines.numpy(), unit @ unit.T, atol=1e-9)


def test_overlap_is_that_of_projections():
    given = updates()
    found = watched(given)
    for m in MODULES:
        bases = [torch.linalg.qr(u.get_trained(f"{m}.B"))[0] for u in given]
        projections = [U @ U.T for U in bases]
        pairs = [(j, k) for j in range(4) for k in range(j)]
        expected = np.mean([float((projections[j] * projections[k]).sum()) / RANK for j, k in pairs])
        assert found.overlap[m] == pytest.approx(expected, abs=1e-9)
    assert compute_mean_overlap(
        [compute_basis(torch.eye(5)[:, :2]), compute_basis(torch.eye(5)[:, 1:4])]
    ) == pytest.approx(0.5)
    assert compute_mean_overlap([compute_basis(torch.zeros(5, 2)), compute_basis(torch.eye(5)[:, :2])]) == 0.0


def test_other_factors_of_the_same_change_disagree_alike():
    given = updates()
    turn = torch.linalg.qr(torch.randn(RANK, RANK, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    turned = []
    for u in given:
        received, delta = dict(u.received), dict(u.delta)
        for m in MODULES:
            for state in (received, delta):
                state[f"{m}.A"], state[f"{m}.B"] = turn.T @ state[f"{m}.A"], state[f"{m}.B"] @ turn
        turned.append(Update(u.client, u.weight, FORM, received, delta))
    one, other = watched(given), watched(turned)
    assert one.canceled == pytest.approx(other.canceled, abs=1e-9)
    torch.testing.assert_close(one.cosines, other.cosines)


def test_clients_that_agree_cancel_nothing_and_opposite_ones_everything():
    start = {n: torch.zeros(s, dtype=torch.float64) for n, s in LAYOUT.shapes.items()}
    start |= {f"{m}.A": drawn(3)[f"{m}.A"] for m in MODULES}
    step = {n: t for n, t in drawn(5).items() if not n.endswith(".A")}
    back = {n: -t for n, t in step.items()}
    alike = watched([Update(k, 1.0, FORM, start, step) for k in range(3)])
    apart = watched([Update(0, 1.0, FORM, start, step), Update(1, 1.0, FORM, start, back)])
    assert (alike.canceled, alike.conflict) == (pytest.approx(0, abs=1e-7), 0.0)
    assert (apart.canceled, apart.conflict) == (pytest.approx(1, abs=1e-7), 0.5)
    assert float(apart.cosines[0, 1]) == pytest.approx(-1)


def test_one_client_disagrees_with_nobody():
    assert watched(updates(1)) is None


def test_a_line_keeps_the_cosines():
    found = watched(updates())
    line = found.to_dict(3)
    np.testing.assert_allclose(restore_cosines(line).numpy(), found.cosines.numpy(), atol=1e-4)
    assert line["clients"] == [0, 1, 2, 3]


def test_spectra_are_those_of_dense_weights():
    state = drawn(7)
    found = compute_spectra(decompose(state, LAYOUT), {})
    norms = {}
    for m in MODULES:
        singular = torch.linalg.svdvals(state[f"{m}.B"] @ state[f"{m}.A"] * FORM.scale)[:RANK]
        p = (singular**2 / (singular**2).sum()).numpy()
        assert found[m].effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)
        assert found[m].stable_rank == pytest.approx(float((singular**2).sum() / singular[0] ** 2), rel=1e-9)
        assert found[m].leading == pytest.approx(p[0], rel=1e-9)
        norms[m] = float((singular**2).sum())
    assert found["one"].energy == pytest.approx(norms["one"] / sum(norms.values()))


def test_an_adapter_that_has_learned_nothing_has_no_ranks():
    state = drawn(7) | {f"{m}.B": torch.zeros(OUT, RANK, dtype=torch.float64) for m in MODULES}
    assert compute_spectra(decompose(state, LAYOUT), {})["one"].effective_rank == 0
    assert shrink_equally(state, LAYOUT)["one.B"].norm() == 0


def test_intruders_are_directions_that_the_base_lacks():
    base = torch.diag(torch.tensor([9.0, 8, 7, 6, 0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64))
    inside = LowRank(base[:, :1] * 2, torch.eye(12, dtype=torch.float64)[:1])  # strengthens what is there
    assert compute_intruder_share(base, inside) == pytest.approx(0, abs=1e-9)
    tilted = torch.diag(torch.arange(12.0, 0.0, -1.0, dtype=torch.float64))
    outside = LowRank(torch.ones(12, 1, dtype=torch.float64) * 100, torch.ones(1, 12, dtype=torch.float64))
    share = compute_intruder_share(tilted, outside)  # along (1, ..., 1), whose cosine with each of the base's is 0.29
    assert share == pytest.approx(1, abs=0.05)


def test_removing_a_direction_and_shrinking_leave_equal_norms():
    state = drawn(8)
    cut, shrunk = remove_leading(state, LAYOUT), shrink_equally(state, LAYOUT)
    for m in MODULES:
        left, singular, right = torch.linalg.svd(state[f"{m}.B"] @ state[f"{m}.A"])
        expected = state[f"{m}.B"] @ state[f"{m}.A"] - singular[0] * torch.outer(left[:, 0], right[0])
        torch.testing.assert_close(cut[f"{m}.B"] @ cut[f"{m}.A"], expected)
        ratio = (shrunk[f"{m}.B"] @ shrunk[f"{m}.A"]).norm() / expected.norm()
        assert float(ratio) == pytest.approx(1, rel=1e-9)

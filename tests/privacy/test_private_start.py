"""The private start: what one row or client can change, the noise, its cost, and who keeps the books."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import norm as normal

from fedpeft.aggregation.bounded_rows import LENGTH_BOUND, directions, hidden_classes, length_sums, typical_length
from fedpeft.aggregation.head_start import HEADS, VARIANCE
from fedpeft.aggregation.heads.private_centroids import PrivateCentroids
from fedpeft.aggregation.heads.private_ridge import as_matrix, as_vector, projection
from fedpeft.config import RunConfig
from fedpeft.errors import ConfigError, PrivacyError
from fedpeft.peft.adapter import norm
from fedpeft.privacy.accountant import Event, epsilon, noise_for, together, within
from fedpeft.privacy.client_engine import OWN
from fedpeft.privacy.engine import LEDGER
from fedpeft.privacy.ledger import POPULATION
from fedpeft.privacy.mechanism import MECHANISMS, bounded_block, noisy
from fedpeft.privacy.noise import RunKey
from fedpeft.run.console import ConsoleObserver
from fedpeft.run.records import Records
from fedpeft.server import preparation
from fedpeft.simulate import simulate
from fedpeft.simulation.simulation import Simulation

WIDTH, CLASSES = 5, 3
BOUNDED = [name for name in HEADS.names if HEADS.build(name).bounded]
KEY = RunKey(b"k" * 32)
TINY = {"dataset": "tiny", "tokens": 32, "clients": 6, "cohort": 3, "rounds": 2, "workers": 1, "seed": 3,
        "local_work": "steps(2)", "peft": "lora(rank=2, layers=1)", "dtype": "fp32",
        "learning_rate": 3e-3, "optimizer": "adamw(warmup=8, head_rate=1.0)",
        "measure": "validation(every=100)"}  # fmt: skip
QUIET = Console(quiet=True)


def trained(folder, **given):
    simulation = Simulation(RunConfig(**{**TINY, **given}), folder, ConsoleObserver(QUIET))
    folder.mkdir(parents=True, exist_ok=True)
    return simulation, simulation.train(simulation.server(Records(folder)))


def book(folder):
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()]


def apart(head, features, labels, without):
    """How far statistics move where the row `without` is left out."""
    rows = [i for i in range(len(labels)) if i != without]
    one, other = (head.statistics(features[i], labels[i], CLASSES) for i in (list(range(len(labels))), rows))
    return norm({name: one[name] - other[name] for name in one})


# ------------------------------------------------------------------------------------------------------- sensitivities


def strange_rows():
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(12, WIDTH, generator=generator, dtype=torch.float64)
    axes = torch.eye(WIDTH, dtype=torch.float64) * 7
    huge, small = plain[:3] * 1e30, plain[3:6] * 1e-30
    broken = torch.tensor([[math.nan] * WIDTH, [math.inf, *[1.0] * (WIDTH - 1)], [0.0] * WIDTH]).double()
    one_class = torch.ones(4, WIDTH, dtype=torch.float64)
    return torch.cat([plain, axes, huge, small, broken, one_class])


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_more_or_less_moves_the_statistics_by_at_most_one(name, dtype):
    """Whatever the row is: huge, of one entry, not a number; and the bound is nearly met."""
    features = strange_rows().to(dtype)
    labels = torch.arange(len(features)) % CLASSES
    labels[-4:] = 1
    for head in (HEADS.build(name), HEADS.build("private_ridge(dimensions=2)") if name == "private_ridge" else None):
        if head is not None:
            moved = [apart(head, features, labels, row) for row in range(len(features))]
            assert max(moved) <= 1 + 1e-9
            assert max(moved) > 0.99, "the bound is not a loose one"


def test_moments_as_a_vector_keep_their_norm():
    x = torch.randn(6, 4, dtype=torch.float64)
    matrix = x.T @ x
    assert float(as_vector(matrix).norm()) == pytest.approx(float(matrix.norm()))
    assert torch.allclose(as_matrix(as_vector(matrix)), matrix)


def test_the_projection_is_the_same_everywhere_and_keeps_angles():
    P = projection(8, 3)
    assert torch.equal(P, projection.__wrapped__(8, 3))
    assert torch.allclose(P @ P.T, torch.eye(3, dtype=torch.float64))
    assert projection(4, 64).shape == (4, 4)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_client_s_block_is_clipped_as_one_vector(name):
    """Client with any rows against no client: at most 1; two clients: at most 2."""
    head, generator = HEADS.build(name), torch.Generator().manual_seed(1)
    user, local = MECHANISMS.build("user_dp(epsilon=1)"), MECHANISMS.build("local_dp(epsilon=1)")
    blocks = []
    for rows in (1, 3, 40):
        features = torch.randn(rows, WIDTH, generator=generator)
        labels = torch.randint(0, CLASSES, (rows,), generator=generator)
        statistics = head.statistics(features, labels, CLASSES)
        blocks.append(user.start_taken(statistics))
        assert norm(statistics) == pytest.approx(norm(blocks[-1])) or norm(blocks[-1]) == pytest.approx(1)
        silent = local.start_released(statistics, 0.0, KEY, (0, 1))
        assert all(torch.equal(silent[n], blocks[-1][n]) for n in silent)
    bad = {n: torch.full_like(t, math.nan) for n, t in blocks[0].items()} | {VARIANCE: torch.zeros(1)}
    assert norm(bounded_block(bad)) == 0
    assert max(norm(block) for block in blocks) <= 1 + 1e-9
    assert max(norm({n: a[n] - b[n] for n in a}) for a in blocks for b in blocks) <= 2


# --------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("mechanism", "deviation"), [("dp_sgd", 3.0), ("local_dp", 6.0), ("user_dp", 3.0)])
def test_noise_has_the_stated_scale_and_is_told_of(mechanism, deviation):
    made = MECHANISMS.build(f"{mechanism}(epsilon=1)")
    zeros = {"sums": torch.zeros(60, 200, dtype=torch.float64), VARIANCE: torch.zeros(1, dtype=torch.float64)}
    clients = [made.start_taken(made.start_released(zeros, 3.0, KEY, (0, k))) for k in range(2)]
    if mechanism == "user_dp":
        assert all(torch.equal(sent["sums"], zeros["sums"]) for sent in clients), "the server adds the noise, once"
        clients = [made.start_summed(zeros, 3.0, KEY, attempt) for attempt in range(2)]
    for sent in clients:
        values = sent["sums"].flatten().numpy()
        assert float(sent[VARIANCE]) == deviation**2
        assert abs(values.mean()) < 5 * deviation / math.sqrt(len(values))
        assert np.std(values) == pytest.approx(deviation, rel=0.03)
    one, other = (sent["sums"].flatten().numpy() for sent in clients)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05, "everyone has noise of its own"


def test_the_noise_is_the_client_s_attempt_s_and_key_s():
    made, zeros = MECHANISMS.build("dp_sgd(epsilon=1)"), {"sums": torch.zeros(3, 4), VARIANCE: torch.zeros(1)}

    def drawn(key, ids):
        return made.start_released(zeros, 1.0, key, ids)["sums"]

    assert torch.equal(drawn(KEY, (0, 1)), drawn(KEY, (0, 1)))
    assert not torch.equal(drawn(KEY, (0, 1)), drawn(KEY, (1, 0)))
    assert not torch.equal(drawn(KEY, (0, 1)), drawn(RunKey(b"x" * 32), (0, 1)))


# ---------------------------------------------------------------------------------------------------------------- cost


GRID, WIDEST = 1e-3, 60.0
"""Of privacy losses: distance of the points, and the largest that is kept."""


def losses(event, joined):
    """Probabilities of privacy losses on the grid, each rounded up; `joined`: seen from the data with the unit.

    With w(x) = 1 - q + q exp((2 x - 1) / (2 z^2)), the loss of an outcome x is log w(x) where the unit is in, whose
    outcomes are those of (1 - q) N(0, z^2) + q N(1, z^2), and -log w(x) where it is not.
    """
    z, q = event.noise, event.rate
    x = np.linspace(-12 * z, 1 + 12 * z, 400_001)
    out, with_it = np.diff(normal.cdf(x / z)), np.diff(normal.cdf((x - 1) / z))
    loss = np.logaddexp(np.log1p(-q) if q < 1 else -np.inf, np.log(q) + (2 * x - 1) / (2 * z * z))
    chance, worst = ((1 - q) * out + q * with_it, loss[1:]) if joined else (out, -loss[:-1])
    bins = np.clip(np.ceil((worst + WIDEST) / GRID), 0, 2 * WIDEST / GRID - 1).astype(int)
    return np.bincount(bins, chance, minlength=int(2 * WIDEST / GRID))


def independent(events, delta):
    """Epsilon by convolving the privacy loss distributions of all releases: another way than the package's."""
    found = 0.0
    for joined in (True, False):
        size = int(2 * WIDEST / GRID)
        spectrum = np.ones(size // 2 + 1, dtype=complex)
        for event, count in events.items():
            spectrum = spectrum * np.fft.rfft(np.roll(losses(event, joined), -size // 2)) ** count
        chance = np.roll(np.fft.irfft(spectrum, size), size // 2).clip(min=0)
        loss = np.arange(size) * GRID - WIDEST
        low, high = 0.0, WIDEST
        while high - low > 1e-4:
            middle = (low + high) / 2
            above = loss > middle
            if (chance[above] * -np.expm1(middle - loss[above])).sum() > delta:
                low = middle
            else:
                high = middle
        found = max(found, high)
    return found


@pytest.mark.parametrize("budget", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("rate", "steps"), [(0.1, 40), (1.0, 3)])
def test_start_and_rounds_together_spend_the_budget_and_no_more(budget, share, rate, steps):
    delta = 1e-4
    start = Event(noise_for(budget, delta, 1.0, 1) / math.sqrt(share), 1.0)
    rounds = Event(noise_for(budget, delta, rate, steps, {start: 1}), rate)
    total = together({start: 1}, {rounds: steps})
    assert within(total, delta, budget)
    assert 0.97 * budget - 0.02 < independent(total, delta) <= budget + GRID * (1 + steps)
    assert not within(together({start: 1}, {Event(0.985 * rounds.noise, rate): steps}), delta, budget)
    assert noise_for(budget, delta, rate, steps, {start: 1}) > noise_for(budget, delta, rate, steps)


def test_one_release_costs_what_the_closed_form_says():
    noise, delta = noise_for(2.0, 1e-4, 1.0, 1), 1e-4
    a, b = 1 / (2 * noise), 2.0 * noise
    assert normal.cdf(a - b) - math.exp(2.0) * normal.cdf(-a - b) == pytest.approx(delta, rel=0.2)


def test_equal_releases_are_added_up():
    event = Event(1.0, 1.0)
    assert together({event: 1}, {event: 2, Event(2.0, 1.0): 1}) == {event: 3, Event(2.0, 1.0): 1}


# --------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("name", BOUNDED)
def test_the_head_survives_noise_that_its_rows_can_bear(name):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % CLASSES
    means = 4 * torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    features = 100 * (means[labels] + torch.randn(900, WIDTH, generator=generator, dtype=torch.float64))
    head = HEADS.build(name)
    total = noisy(head.statistics(features, labels, CLASSES), 8.0, KEY.stream("noise"))
    solved = head.solve(total, WIDTH, CLASSES)
    logits = features @ solved["head.weight"].T + solved["head.bias"]
    assert float((logits.argmax(1) == labels).double().mean()) > 0.85
    assert float(logits.abs().max()) < 10 * head.scale, "logits have a size, whatever the features' lengths are"
    assert head.hidden(total) == []


def test_lengths_are_told_within_a_factor_of_two_under_noise():
    features = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0)) * 0.3
    sums = length_sums(features)
    true = float(features.norm(dim=1).log().mean().exp())
    assert typical_length(sums) == pytest.approx(true, rel=1e-3)
    assert 0.5 < typical_length(sums + torch.tensor([4.0, -4.0])) / true < 2
    assert typical_length(torch.tensor([-3.0, 1.0])) == 1
    assert float(length_sums(features[:1]).norm()) <= LENGTH_BOUND**0.5


def test_a_class_that_drowns_in_noise_loses_to_all_others():
    features = torch.eye(4, dtype=torch.float64).repeat(50, 1)
    labels = torch.arange(200) % 4
    keep = (labels != 2) | (torch.arange(200) < 5)
    head = HEADS.build("private_centroids")
    total = noisy(head.statistics(features[keep], labels[keep], 4), 2.0, KEY.stream("noise"))
    assert head.hidden(total) == [2]
    solved = head.solve(total, 4, 4)
    logits = features @ solved["head.weight"].T + solved["head.bias"]
    assert 2 not in logits.argmax(1)
    assert set(logits.argmax(1)[labels != 2].tolist()) == {0, 1, 3}
    assert not hidden_classes(torch.ones(2, 4), 0.0).any()


def test_directions_of_what_has_none():
    found = directions(torch.tensor([[math.nan, 1.0], [0.0, 0.0], [3.0, 4.0]]))
    assert found.tolist() == [[0.0, 0.0], [0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(("mechanism", "budget"), [("dp_sgd", 8.0), ("local_dp", 300.0), ("user_dp", 8.0)])
def test_a_run_is_charged_for_its_start_before_anyone_is_asked_and_stays_within_its_budget(
    mechanism, budget, tmp_path, monkeypatch
):
    seen = []
    original = Simulation.server

    def watched(self, records):
        server = original(self, records)
        inner = server.clients.in_order

        def in_order(instructions, count, phase):
            if phase == "prepare":
                seen.append(book(self.folder)[1])
            return inner(instructions, count, phase)

        server.clients.in_order = in_order
        return server

    monkeypatch.setattr(Simulation, "server", watched)
    simulation, progress = trained(tmp_path, privacy=f"{mechanism}(epsilon={budget}, start=0.5)")
    own = simulation.protection
    assert simulation.config.head == "private_centroids"
    assert progress.round == 2
    [first] = seen
    accounts = [POPULATION] if mechanism == "user_dp" else list(range(6))
    assert first["round"] == 0
    assert first["charges"] == [[account, own.start, 1.0, 1] for account in accounts]
    whole = noise_for(budget, own.delta, 1.0, 1)
    assert own.start == pytest.approx(whole * math.sqrt(2))
    assert book(tmp_path)[0]["start_noise_multiplier"] == own.start
    worst, _ = own.epsilons()
    assert 0.9 * budget < worst <= budget
    assert worst == max(epsilon(events, own.delta) for events in own.ledger.spent.values())
    simulation.close()


def test_all_of_the_budget_may_be_the_start_s_and_no_round_follows(tmp_path):
    simulation, progress = trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    assert progress.round == 0
    assert len(book(tmp_path)) == 2
    assert 2.9 < simulation.protection.epsilons()[0] <= 3
    simulation.close()


def test_a_start_repeated_after_a_kill_is_the_same_and_charged_once(tmp_path, monkeypatch):
    class KillError(BaseException):
        pass

    with monkeypatch.context() as patch:
        patch.setattr("fedpeft.server.rounds.Server.commit", lambda *_: (_ for _ in ()).throw(KillError))
        with pytest.raises(KillError):
            trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    before = book(tmp_path)
    _, progress = trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    assert book(tmp_path) == before
    (tmp_path / "checkpoint").rename(tmp_path / "gone")
    _, again = trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)")
    assert all(torch.equal(progress.adapter[n], again.adapter[n]) for n in again.adapter)
    (tmp_path / "checkpoint").rename(tmp_path / "gone too")
    with pytest.raises(PrivacyError, match="would take client 0 above its budget"):
        trained(tmp_path, privacy="dp_sgd(epsilon=3, start=1)", learning_rate=1e-3)


def test_nothing_but_the_release_leaves_a_client(tmp_path, monkeypatch):
    """Numbers of rows neither, and the statistics differ from the sums by the noise that is told."""
    made, sent, norm_of = [], [], torch.linalg.norm
    statistics, check = PrivateCentroids.statistics, preparation.check_statistics

    def noted(self, *given):
        made.append(statistics(self, *given))
        return made[-1]

    def heard(found, *given):
        sent.append(found)
        check(found, *given)

    monkeypatch.setattr(PrivateCentroids, "statistics", noted)
    monkeypatch.setattr(preparation, "check_statistics", heard)
    simulation, progress = trained(tmp_path, privacy="dp_sgd(epsilon=8, start=1)")
    assert set(progress.rows.values()) == {1}
    assert len(made) == len(sent) == simulation.config.clients
    noises = []
    for found in sent:  # the largest clients are worked on first: whose sums they are is told by their size
        distances = [found["sums"].double() - own["sums"] for own in made]
        noises.append(min(distances, key=norm_of).flatten())
    noise = torch.cat(noises)
    assert float(noise.std()) == pytest.approx(simulation.protection.start, rel=5 / (2 * len(noise)) ** 0.5)
    simulation.close()


def test_plain_and_unprotected_runs_have_the_heads_that_they_had(tmp_path):
    for privacy, head in (("", "ridge"), ("none", "zero"), ("dp_sgd(epsilon=8, start=0)", "zero")):
        simulation = Simulation(RunConfig(**TINY, privacy=privacy), tmp_path, ConsoleObserver(QUIET))
        assert simulation.config.head == head
        simulation.close()


def test_bounded_heads_need_no_privacy(tmp_path):
    simulation, progress = trained(tmp_path, head="private_ridge", rounds=1)
    assert progress.round == 1
    simulation.close()


@pytest.mark.parametrize("mechanism", ["dp_sgd", "user_dp"])
def test_noise_without_a_budget_costs_the_share_that_is_asked_for(mechanism, tmp_path):
    simulation, _ = trained(tmp_path, privacy=f"{mechanism}(noise_multiplier=1.0, start=0.5)", head="private_ridge")
    own = simulation.protection
    rounds = max(epsilon({Event(1.0, rate): n}, own.delta) for rate, n in own.mechanism.planned(own.federation))
    alone = epsilon({Event(own.start, 1.0): 1}, own.delta)
    assert alone == pytest.approx(rounds, rel=0.02)
    assert rounds < own.epsilons()[0] < 2 * rounds
    simulation.close()


def test_the_summary_has_the_private_probe_and_the_start(tmp_path):
    summary = simulate(RunConfig(**TINY, privacy="dp_sgd(epsilon=40)"), tmp_path / "run", False, QUIET).as_dict()
    assert 0.25 < summary["private_probe_accuracy"] <= 1
    assert summary["accuracy"] == pytest.approx(summary["private_probe_accuracy"], abs=0.15)
    assert summary["rounds"] == 0
    assert summary["privacy"]["start_share"] == 1
    assert summary["privacy"]["start_noise_multiplier"] == summary["noise_multiplier"]


def test_what_training_could_say_decides_about_rounds(tmp_path):
    def planned(text, **given):
        simulation = Simulation(RunConfig(**{**TINY, **given}, privacy=text), tmp_path, ConsoleObserver(QUIET))
        simulation.close()
        return simulation.protection

    few, many = planned("dp_sgd(epsilon=1)"), planned("dp_sgd(epsilon=400)")
    assert (few.trains, many.trains) == (False, True)
    assert "no round of training is planned" in few.plan()
    assert "for 2 rounds" in many.plan()
    assert many.start_share == 0.5
    federation = many.federation
    noise = noise_for(400.0, many.delta, 1.0, 1)
    expected = federation.rows.sum() / (noise * math.sqrt(2) * math.sqrt(6) * math.sqrt(federation.layout.numel))
    assert many.mechanism.training_signal(federation) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"privacy": "dp_sgd(epsilon=8)", "head": "centroids"}, "use --head zero, private_centroids or private_ridge"),
        ({"privacy": "dp_sgd(epsilon=8, start=0)", "head": "private_ridge"}, "start=0 leaves nothing"),
        ({"privacy": "dp_sgd(noise_multiplier=1, start=1)"}, "start=1 is all of a budget"),
        ({"privacy": "dp_sgd(epsilon=8, start=1.5)"}, "start must be"),
        ({"privacy": "dp_sgd(epsilon=0.01)"}, r"epsilon 0\.01 is too small for a private start.*at least 0\.\d+"),
        ({"privacy": "user_dp(epsilon=8)", "drift": "label_shift"}, "does not ask clients for"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(given, says, tmp_path):
    with pytest.raises((PrivacyError, ConfigError), match=says):
        Simulation(RunConfig(**{**TINY, **given}), tmp_path, ConsoleObserver(QUIET))


def test_the_smallest_epsilon_that_is_offered_is_taken(tmp_path):
    with pytest.raises(PrivacyError) as refused:
        Simulation(RunConfig(**TINY, privacy="dp_sgd(epsilon=0.01)"), tmp_path, ConsoleObserver(QUIET))
    least = str(refused.value).split("at least ")[1].split(",")[0]
    Simulation(RunConfig(**TINY, privacy=f"dp_sgd(epsilon={least})"), tmp_path, ConsoleObserver(QUIET)).close()


# --------------------------------------------------------------------------------------------------------- real clients


PRIVATE = {"head": "private_centroids", "privacy": "dp_sgd(epsilon=8, start=0.5)"}


def own_book(made, k):
    return [json.loads(line) for line in (made.folder / f"edge-{k}" / LEDGER).read_text().splitlines()[1:]]


@pytest.mark.parametrize("mechanism", ["dp_sgd", "local_dp"])
def test_real_clients_release_once_under_their_own_books(federation, mechanism):
    made = federation(head="auto", privacy=f"{mechanism}(epsilon=8, start=0.5)")
    made.server.present()
    assert made.run().round == 2
    second = made.server.protection
    for k, edge in enumerate(made.server.edges):
        own = edge.protection
        first, *rest = own_book(made, k)
        assert (first["round"], first["charges"]) == (0, [[OWN, own.start, 1.0, 1]])
        assert [line["round"] for line in rest] == [1, 2]
        assert second.ledger.spent[k] == own.ledger.spent[OWN], "the server's book says the same"
        assert own.spent() <= 8
    [line] = [entry for entry in book(made.folder / "server")[1:] if entry["round"] == 0]
    assert {charge[0] for charge in line["charges"]} == {0, 1}
    asked = [i for i in made.server.direct.asked if i.kind == "prepare"]
    sent = [r for r in made.server.direct.reports if r.round == 0]
    assert {r.rows for r in sent} == {1}
    edge, before = made.server.edges[0], own_book(made, 0)
    assert "a second time" in edge.handle(asked[0]).error, "its answer is not the last one any more"
    assert "a second time" in edge.handle(replace(asked[0], base_precision="fp32")).error
    assert own_book(made, 0) == before


def test_the_start_is_answered_again_bit_for_bit_until_training_begins(federation):
    made = federation(**PRIVATE)
    edge = made.server.edges[0]
    from fedpeft.communication.messages import Instruction

    asked = Instruction("prepare", 0, 0, b"")
    given = edge.handle(asked)
    assert given.payload
    assert given.charged == 1
    assert edge.handle(replace(asked, attempt=3)) == given
    assert made.edge(0).handle(asked) == given
    assert len(own_book(made, 0)) == 1
    assert "a second time" in edge.handle(replace(asked, base_precision="fp32")).error
    assert "do not include" in edge.handle(replace(asked, round=1)).error
    assert len(own_book(made, 0)) == 1


def test_a_client_whose_start_has_all_trains_not(federation):
    made = federation(head="auto", privacy="dp_sgd(epsilon=8, start=1)", rounds=3)
    made.server.present()
    assert made.run().round == 0
    assert [len(own_book(made, k)) for k in range(2)] == [1, 1]


def test_a_client_without_a_private_start_refuses_sums_over_its_rows(federation):
    from fedpeft.communication.messages import Instruction

    made = federation(privacy="dp_sgd(epsilon=8)")
    report = made.server.edges[0].handle(Instruction("prepare", 0, 0, b""))
    assert "does not protect" in report.error
    assert not report.payload

"""The page: what was asked of trust is seen in the report, in words and in pictures."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from fedpeft.reporting.trackers import _flatten_trust
from fedpeft.study.page import PageSection, render_page
from fedpeft.study.sections import Section
from fedpeft.study.tables import build_trust_table
from fedpeft.study.trust_figures import draw_trust_figures
from fedpeft.trust.calibration import compare_answers, create_questions
from fedpeft.trust.groups import find_groups, place_in_plane
from fedpeft.wiring.measurements import trust_lines
from tests.studies.made import made_result


def trust(clients=20):
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(200, 5)) * 3)
    labels = torch.from_numpy(random.integers(0, 5, size=200))
    asked = create_questions(2.0, 15)
    own = random.normal(size=(clients, 6)) + np.where(np.arange(clients) % 2, 3, -3)[:, None]
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    cosines, ids = own @ own.T, list(range(clients))
    groups = find_groups(cosines)
    points = [{"strength": s, "accuracy": 0.7 - s, "worst": 0.6 - s, "unchanged": 0.9, "worst_clients": 0.4}
              for s in (0.05, 0.1)]  # fmt: skip
    return {
        "calibration": {"temperature": 2.0, "test": compare_answers([q.answer(logits, labels) for q in asked], asked)},
        "robustness": {"rows": 100, "draws": 5, "clean": points[0], "typos": points, "embeddings": points},
        "disagreement": {
            "round": 3,
            "clients": ids,
            "cancelled": 0.4,
            "conflict": 0.2,
            "agreement": {f"encoder.layer.{i}.query": list(random.uniform(-1, 1, clients)) for i in range(6)},
            "places": place_in_plane(cosines).tolist(),
            "groups": [list(group) for group in groups.groups],
            "opposed": [],
            "advice": groups.give_advice(tuple(ids)),
            "causal": {n: {"loss": 1.0, "accuracy": 0.5}
                       for n in ("as it is", "without the leading direction", "shrunk to the same norm")},
        },
        "energy": {"joules": 9e3, "train": 5e3, "idle": 1e3, "up": 2e3, "down": 1e3, "grams": 1.5, "measured": None,
                   "pue": 1.0, "dropped": 2, "rounds": [3e3] * 3, "clients": {str(k): 9e3 / clients for k in ids}},
    }  # fmt: skip


def result(clients=20, seed=0, skill=0.7):
    made = made_result({"strategy": "fedit"}, seed, skill, 1.0)
    return dataclasses.replace(made, summary={**made.summary, "trust": trust(clients)})


@pytest.mark.medium
def test_a_run_shows_its_trust():
    run = Section("run", "", [result(100)], {})
    made = draw_trust_figures(run)
    drawn = {name: svg for name, _, _, svg in made}
    assert set(drawn) == {"trust_reliability", "coverage", "robustness", "disagreement", "places", "energy"}
    assert all(drawn.values())
    assert len(re.findall(r"<!-- \d+ -->", drawn["disagreement"])) <= 30 + 6  # ids do not run into each other
    assert "clients fall into 2 groups" in next(note for name, _, note, _ in made if name == "places")
    table = build_trust_table(run.results[0])
    said = dict(table.shown)
    assert said["energy of the clients"] == "9 kJ, 1.5 g of CO2"
    assert said["typos at 0.1, worst draws"] == "0.6500 -> 0.5000"


@pytest.mark.slow
def test_the_page_has_it_and_equal_results_give_equal_figures():
    one, other = (PageSection.from_section(Section("run", "", [result()], {})) for _ in range(2))
    assert [figure.svg for figure in one.figures] == [figure.svg for figure in other.figures]
    assert "Trust: disagreement by layer and client" in render_page("run", [one], [], "csv")


@pytest.mark.slow
def test_methods_are_compared():
    results = [dataclasses.replace(result(seed=s), point={"strategy": name}) for name in ("a", "b") for s in (0, 1)]
    made = PageSection.from_section(Section("study", "", results, {"strategy": "a"}))
    names = {figure.name for figure in made.figures}
    assert {"coverage", "robustness"} <= names
    assert not {"places", "disagreement"} & names
    headings = {heading for table in made.tables for heading in table.headings}
    assert {"class-wise calibration error (%)", "Brier score, calibrated", "risk-coverage area (%)"} <= headings
    assert "energy per point of accuracy (J)" in headings


def test_who_asked_nothing_sees_nothing():
    plain = made_result({"strategy": "fedit"}, 0, 0.7, 1.0)
    assert not any(svg for _, _, _, svg in draw_trust_figures(Section("run", "", [plain], {})))
    assert build_trust_table(plain) is None
    assert trust_lines({"trust": None}) == {}


def test_trackers_receive_numbers():
    found = _flatten_trust({"trust": trust()})
    assert found["trust/energy/joules"] == 9e3
    assert 0 <= found["trust/calibration/test/after/error"] <= 1

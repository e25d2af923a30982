"""FedALT: two LoRAs mixed at each token, the mean of the others whoever takes part, and what stays where."""

from __future__ import annotations

import pytest
import torch
from fedpeft.clients.rule_half import prepare_job

from fedpeft.aggregation.update import Fold, Update
from fedpeft.conformance.peft_cases import Case
from fedpeft.parts.families import strategies
from fedpeft.peft.methods.row_lora import TwoLoras
from fedpeft.simulation.simulation import Simulation
from fedpeft.wiring.config import RunConfig
from tests.refusals import refuses
from tests.runs.simulation.test_run_strategies import settings

FEDALT = strategies.build("fedalt(clients=4)")


@pytest.fixture
def case(tiny):
    return Case("row_lora(rank=3, alpha=6)", tiny)


def test_the_layer_mixes_both_at_each_token(case):
    layer = next(m for m in case.model.modules() if isinstance(m, TwoLoras))
    case.sequential.load({n: 2 * t for n, t in case.start.items()})
    x = torch.randn(2, 3, layer.base_layer.in_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = {name: layer.get_submodule(name).weight for name in ("own_A", "own_B", "rest_A", "rest_B", "gate")}
    with torch.no_grad():
        found = layer(x)
        for row in range(2):
            for token in range(3):
                one = x[row, token]
                a = (p["gate"] @ one).exp() / (p["gate"] @ one).exp().sum()
                own, rest = (p[f"{n}_B"] @ (p[f"{n}_A"] @ one) for n in ("own", "rest"))
                expected = layer.base_layer(one) + 2 * (a[0] * own + a[1] * rest)
                assert torch.allclose(found[row, token], expected, atol=1e-12)
                assert 0.01 < float(a[0]) < 0.99


def test_the_others_mean_stands_still_and_executors_agree(case):
    jobs = [prepare_job(job, FEDALT, case.layout, ()) for job in case.jobs()]
    for one, other, job in zip(
        case.sequential.train(jobs), case.create_batched_executor().train(jobs), jobs, strict=True
    ):
        for name, tensor in one.state.items():
            assert torch.equal(tensor, job.received[name]) == (".rest_" in name), name
            assert torch.allclose(other.state[name], tensor, rtol=1e-9, atol=1e-11)


def test_the_server_holds_the_mean_of_all_and_clients_see_the_others(case):
    """Five rounds in which some of four clients take part, against a list of what each of them has."""
    layout = case.layout
    state = FEDALT.start(case.start, layout, 0)  # all begin alike
    private, generator = FEDALT.list_private(layout), torch.Generator().manual_seed(2)
    owns = [{n: state[n] for n in private} for _ in range(4)]
    for cohort in ([0, 2], [2], [1, 2, 3], [0, 1, 2, 3], [3]):
        total, before = Fold(), list(owns)
        for client in cohort:
            received = FEDALT.prepare_start({**state, **owns[client]}, layout)
            for rest in layout.names:
                if ".rest_" in rest:
                    others = [o[rest.replace(".rest_", ".own_")] for k, o in enumerate(before) if k != client]
                    assert torch.allclose(received[rest], sum(others) / 3, atol=1e-12)
            after = {n: t + torch.randn(t.shape, generator=generator, dtype=t.dtype) * (n in private)
                     for n, t in received.items()}  # fmt: skip
            handed = FEDALT.select_update({}, received, after, layout)
            assert handed.keys() == set(layout.names) - private
            FEDALT.fold(total, Update(client, 3.0 + client, None, received, handed), state, layout)
            owns[client] = {n: after[n] for n in private}
        state = {n: t + step.get(n, 0) for step in [FEDALT.pseudo_gradient(total, layout)] for n, t in state.items()}
        for rest in layout.names:
            if ".rest_" in rest:
                mean = sum(o[rest.replace(".rest_", ".own_")] for o in owns) / 4
                assert torch.allclose(state[rest], mean, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"peft": "lora"}, ("FP1485", "--peft")),
        ({"strategy": "fedalt(weighting=rows)"}, ("FP1486",)),
        ({"strategy": "fedalt(clients=5)"}, ("FP1294", "5", "6")),
        ({"server_optimizer": "adam"}, ("FP1336",)),
    ],
)
def test_what_would_spoil_the_mean_is_said(given, words, tmp_path, observer):
    config = RunConfig(**{**settings("fedalt"), **given})
    with refuses(*words):
        Simulation(config, tmp_path, observer)

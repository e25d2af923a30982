"""The study that sets what two searches have found side by side."""

from __future__ import annotations

from experiments.tune.__main__ import SEEDS, format_study
from fedpeft.study.study_file import read_study
from fedpeft.wiring.config import RunConfig


def test_the_study_has_an_axis_of_what_differs_and_shares_the_rest(tmp_path):
    shared = {"dataset": "tiny", "model": "tiny", "clients": 6, "dtype": "fp32", "workers": 1}
    best = {
        "lora": RunConfig(**shared, peft="lora(rank=4, layers=2)", learning_rate=0.01),
        "hybrid": RunConfig(**shared, peft="lora(rank=2, layers=(0, 2)) + bitfit(layers=(0, 2))"),
    }
    path = tmp_path / "study.toml"
    path.write_text(format_study("tiny", best), encoding="utf-8")
    study = read_study(path)
    assert study.baseline == {"method": "lora"}
    runs = study.plan_runs()
    assert len(runs) == 2 * len(SEEDS)
    for run in runs:
        wanted = best[run.point["method"]]
        assert (run.config.peft, run.config.learning_rate) == (wanted.peft, wanted.learning_rate)
        assert (run.config.dataset, run.config.clients, run.config.dtype) == ("tiny", 6, "fp32")

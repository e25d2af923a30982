"""What a configuration makes."""

from fedpeft.simulate import main


def test_a_run_s_folder_names_precision_and_partition(monkeypatch, tmp_path):
    monkeypatch.setattr("fedpeft.wiring.auto_defaults.has_fast_bf16", lambda device: False)
    monkeypatch.setattr("fedpeft.wiring.auto_defaults.list_accelerators", list)
    words = ["--dataset=tiny", "--clients=4", "--cohort=2", "--rounds=1", "--workers=1", "--local-work=steps(1)"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    written = (tmp_path / "run" / "config.toml").read_text()
    assert 'dtype = "fp32"' in written
    assert 'partition = "dirichlet(alpha=0.5)"' in written

"""Measurements: benchmarks (`python -m experiments.NAME`) and studies (a folder with a study.toml)."""

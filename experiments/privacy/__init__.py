"""Accuracy against epsilon (study.toml), and the cost of a private step (python -m experiments.privacy)."""

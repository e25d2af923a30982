"""Accuracy against epsilon (study.toml), and what a private step costs (python -m experiments.privacy)."""

"""Datasets: where examples come from, which owner each belongs to, and how they become a model's input."""

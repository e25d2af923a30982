"""What the default task gives without any federation: `python -m experiments.baselines`."""

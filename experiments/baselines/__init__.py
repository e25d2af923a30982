"""What 20 Newsgroups (or `--dataset`) gives without any federation: `python -m experiments.baselines`."""

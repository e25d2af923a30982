"""Results on 20 Newsgroups, or `--dataset`, without any federation: `python -m experiments.baselines`."""

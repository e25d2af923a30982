"""Model families that run, tried with tiny random checkpoints (`python -m experiments.families`)."""

"""Which families of models run, and how: tiny random checkpoints of each (`python -m experiments.families`)."""

"""Generated tables of the documentation (`python -m experiments.reference --write`)."""

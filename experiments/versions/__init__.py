"""Both ends of the ranges of dependencies, each in an environment of its own (`python -m experiments.versions`)."""

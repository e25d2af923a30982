"""A set of measurements for one CUDA machine: `python -m experiments.gpu`."""

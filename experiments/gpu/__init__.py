"""A kit of measurements for one CUDA machine: `python -m experiments.gpu`."""

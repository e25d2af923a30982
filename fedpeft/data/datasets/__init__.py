"""Datasets, one per file; `--dataset NAME` selects one."""

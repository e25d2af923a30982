"""Data sets, one per file; `--dataset NAME` picks one."""

"""Ways to split training examples over clients, one per file; `--partition NAME` selects one."""

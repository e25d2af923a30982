"""Ways to split training rows over clients, one per file; `--partition NAME` picks one."""

"""Code review and clones, next to simple baselines."""

"""Places where simulated clients run, one per file."""

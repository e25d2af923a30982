"""Where simulated clients run, one per file."""

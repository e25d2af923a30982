"""A federation whose clients are simulated on this machine."""

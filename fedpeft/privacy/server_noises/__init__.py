"""Relations of the noise of rounds, one per file."""

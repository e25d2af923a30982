"""The server's half of a run: the round loop, its features, and secure sums."""

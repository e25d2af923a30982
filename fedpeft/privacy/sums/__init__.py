"""Ways to add up updates so that nobody sees a single one, one way per file."""

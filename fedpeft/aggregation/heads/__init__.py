"""Ways to start the classification head, one per file."""

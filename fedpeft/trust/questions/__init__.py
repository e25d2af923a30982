"""Questions to clients about their held-out examples, one per file."""

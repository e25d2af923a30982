"""What clients can be asked of their held-out rows, one per file."""

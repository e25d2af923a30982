"""What may happen to rows, one kind per file."""

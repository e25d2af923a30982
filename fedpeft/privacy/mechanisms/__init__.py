"""Privacy mechanisms, one per file."""

"""Local optimizers, one per file."""

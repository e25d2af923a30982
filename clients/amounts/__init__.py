"""Amounts of local work, one per file."""

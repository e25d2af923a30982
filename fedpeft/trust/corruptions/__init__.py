"""Corruptions of inputs, one per file."""

"""Measurements of `--measure`, one per file."""

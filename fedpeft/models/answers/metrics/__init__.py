"""Metrics of answers, one per file."""

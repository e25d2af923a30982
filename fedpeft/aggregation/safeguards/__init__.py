"""Safeguards, one per file."""

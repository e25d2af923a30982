"""Attacks of hostile clients, one per file."""

"""Rows: from where they come, whose they are, and how they become a model's input."""

"""Adapters: what is trained on a frozen base, and how it is saved."""

"""Corrections of the clients' drift, one per file."""

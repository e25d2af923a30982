"""Bytes, error and speed of each codec; see README.md."""

"""Audits: whether a mechanism protects as it claims, and whether a finished run reveals its members."""

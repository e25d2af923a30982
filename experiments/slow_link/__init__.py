"""Rounds of real clients over a slow, lossy line between two network namespaces."""

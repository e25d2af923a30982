"""Tests at both ends of the ranges of dependencies, each in its own environment."""

"""Differential privacy: mechanisms, accounting, ledgers and the noise."""

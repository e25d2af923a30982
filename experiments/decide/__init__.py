"""The design of a registered study that decides 24 claims, fixed before any of its runs."""

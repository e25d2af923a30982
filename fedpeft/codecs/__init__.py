"""Codec steps, one part per file; see `fedpeft.codec` for what a step is."""

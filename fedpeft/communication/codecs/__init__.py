"""Codec steps, one part per file; see `fedpeft.communication.codec` for what a step is."""

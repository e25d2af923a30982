"""Codec steps, one part per file; `fedpeft.communication.codec` explains steps."""

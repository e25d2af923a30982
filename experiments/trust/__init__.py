"""Studies behind the trust page."""

"""Studies of what the trust page measures."""

"""How fast rounds of real clients are when nothing is trained."""

"""One run: how its parts go together, its folder, its records and its outcome."""
